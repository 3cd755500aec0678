"""Random edits of texts: each does what its share says, nothing else, and leaves kept spans alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from jaxlm.data.augmentation.config import AugmentConfig
from jaxlm.data.augmentation.edits import RandomEditor
from jaxlm.data.augmentation.pieces import join_pieces, split_pieces

WORDS = [f"Word{i}" for i in range(2000)]
TEXT = " ".join(WORDS)


def editor(seed: int = 0, synonyms: Any = None, **shares: Any) -> RandomEditor:
    config = AugmentConfig.model_validate({**shares, **({} if synonyms is None else {"synonyms": "x"})})
    return RandomEditor(config, np.random.default_rng(seed), synonyms or {})


@pytest.mark.parametrize(
    "text", ["", " ", "a", " a\tb \n", "今天，天气 good很好！", "e\u0301 \U0001f642\u200d🙂 שלום", "x\u00a0y"]
)
def test_a_text_is_what_its_pieces_are(text):
    assert join_pieces(*split_pieces(text)) == (text, [])
    assert [p.text for p in split_pieces("今天 is好")[0]] == ["今", "天", "is", "好"]


def test_deletion_leaves_out_its_share_and_never_everything():
    left = editor(delete=0.3).edit(TEXT).split()
    assert 1300 < len(left) < 1500 and left == [word for word in WORDS if word in set(left)]
    for seed in range(20):
        assert len(editor(seed, delete=0.99).edit("a b c").split()) == 1
    assert editor(delete=0.5).edit("今天天气很好") in "今天天气很好" or set(
        editor(delete=0.5).edit("今天天气很好")
    ) < set("今天天气很好")
    assert not editor(3, delete=0.9).edit("  a b c").startswith("   ")


def test_swaps_move_about_their_share():
    moved = editor(swap=0.2).edit(TEXT).split()
    assert Counter(moved) == Counter(WORDS)
    assert 300 < sum(a != b for a, b in zip(moved, WORDS, strict=True)) < 480


def test_insertions_add_words_of_the_text_or_their_synonyms():
    added = editor(insert=0.1).edit(TEXT).split()
    assert 140 < len(added) - len(WORDS) < 260 and set(added) == set(WORDS)
    known = iter(added)
    assert all(word in known for word in WORDS)  # in their order
    assert set(editor(synonyms={"a": ["b"]}, insert=1.0).edit("a a a").split()) == {"a", "b"}
    assert " " not in editor(insert=1.0).edit("今天天气很好")
    assert "  " not in editor(insert=1.0).edit("a b c")


def test_synonyms_take_the_capitals_of_the_word():
    edit = editor(synonyms={"film": ["movie"]}, replace=1.0)
    assert edit.edit("Film, film FILM films") == "Film, movie MOVIE films"


def test_slips_are_of_one_letter():
    for seed in range(50):
        [before] = ["excellent"]
        after = editor(seed, typo=1.0).edit(before)
        assert abs(len(after) - len(before)) <= 1 and set(after) <= set(before)
        assert Counter(after) != Counter(before) or sorted(after) == sorted(before)
    assert editor(typo=1.0).edit("an 今天 12 ok") == "an 今天 12 ok"
    wrong = editor(typo=0.1).edit(TEXT).split()
    assert 120 < sum(a != b for a, b in zip(wrong, WORDS, strict=True)) < 260  # two equal letters may change places


def test_case_changes_letters_alone():
    changed = editor(case=0.5).edit(TEXT)
    assert (
        changed.lower() == TEXT.lower()
        and 800 < sum(a != b for a, b in zip(changed.split(), WORDS, strict=True)) < 1200
    )


def test_kept_spans_stay_and_are_found_again():
    text = "Ann Lee met  New York's mayor, 今天 in 北京"
    kept = [(0, 7), (13, 21), (37, 39)]
    assert [text[a:b] for a, b in kept] == ["Ann Lee", "New York", "北京"]
    changed = 0
    for seed in range(100):
        new, spans = editor(seed, delete=0.3, swap=0.5, insert=0.3, case=0.3, typo=0.3).edit_around(text, kept)
        assert [new[a:b] for a, b in spans] == ["Ann Lee", "New York", "北京"] and spans == sorted(spans)
        changed += new != text
    assert changed > 80


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({}, "expected a share above 0 of at least one of delete, swap"),
        ({"replace": 0.1}, "replace: expected `synonyms`"),
        ({"delete": 0.1, "synonyms": "x"}, "synonyms: only with replace or insert"),
        ({"delete": 1.0}, "less than 1"),
        ({"delete": 0.1, "copies": 0}, "greater than 0"),
    ],
)
def test_what_the_section_refuses(section, problem):
    with pytest.raises(ValueError, match=problem):
        AugmentConfig.model_validate(section)


def test_what_touches_a_kept_span_stays_with_it():
    """Else another word would grow together with the span, and its label would stand at a word that is not there."""
    text = "They met in (Paris), the old city, and Anna's friend saw Rome."
    kept = [(text.index(word), text.index(word) + len(word)) for word in ("Paris", "Anna", "Rome")]
    for seed in range(100):
        new, spans = editor(seed, delete=0.3, swap=0.8, insert=0.5, case=0.3).edit_around(text, kept)
        around = [new[max(a - 1, 0) : b + 1] for a, b in spans]
        assert around[0] == "(Paris)" and around[1][1:] == "Anna'" and around[2][1:] == "Rome." and "), " in new + " "
    moved = {editor(seed, swap=1.0).edit_around("在北京见面", [(1, 3)])[0] for seed in range(20)}
    assert any(not text.startswith("在") for text in moved)  # characters of Chinese are words of their own
