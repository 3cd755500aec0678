"""Groups of near-copies among many texts: what the index of near-copies finds, in whatever order they stand."""

from __future__ import annotations

import random

from jaxlm.data.sources import copy_groups
from jaxlm.data.sources.copy_groups import group_copies
from jaxlm.data.sources.near_copies import cluster_near_copies


def variations(seed: int, count: int = 120) -> list[str]:
    """Sentences of a small vocabulary, some of which repeat others in part, and short ones."""
    rng = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(60)]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 14))) for _ in range(count)]
    for text in rng.sample(texts, count // 4):
        words = text.split()
        cut = rng.randint(0, len(words))
        texts.append(" ".join([*words[:cut], *rng.choices(vocabulary, k=rng.randint(0, 4))]) + rng.choice(["", "!"]))
    return texts


def test_groups_are_the_clusters_of_near_copies():
    for seed in range(3):
        texts = variations(seed)
        groups = group_copies(texts)
        assert groups == cluster_near_copies(texts)
        assert len(set(groups)) < len(set(texts))


def test_the_order_of_the_texts_does_not_matter():
    texts = variations(5)
    found = dict(zip(texts, group_copies(texts), strict=True))
    shuffled = random.Random(1).sample(texts, len(texts))
    assert group_copies(shuffled) == [found[text] for text in shuffled]


def test_a_template_of_many_texts_is_one_group():
    texts = [f"your order {i} has left our house and will be with you in a day" for i in range(40)]
    assert len(set(group_copies([*texts, "nothing like it at all"]))) == 2


def test_chinese_is_compared_by_its_characters():
    one, two = "我今天在北京大学的图书馆里看书", "我今天在北京大学的图书馆里写信"
    assert len(set(group_copies([one, two, "他昨天坐火车去上海看望他的母亲"]))) == 2


def test_case_marks_nothing_and_no_texts_at_all():
    assert len(set(group_copies(["Good film!", "good film", "good films"]))) == 2
    assert group_copies([]) == [] and group_copies([""]) == [""]


def test_of_very_many_words_only_equal_texts_are_grouped(monkeypatch):
    monkeypatch.setattr(copy_groups, "MOST_WORDS", 10)
    texts = ["a b c d e f g h i j", "a b c d e f g h i j!", "a b c d e f g h i j"]
    assert group_copies(texts) == texts
