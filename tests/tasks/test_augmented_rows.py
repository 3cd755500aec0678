"""Edited copies of training rows, task by task: what labels them moves along, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.corpora import byte_tokenizer
from helpers.tokenizer_folders import loaded

from jaxlm.data.config import DataConfig
from jaxlm.data.examples.tables import TableSources
from jaxlm.errors import UserError
from jaxlm.tasks import TASKS
from jaxlm.tasks.records import Context, Request

EDITS = {"delete": 0.2, "swap": 0.3, "insert": 0.2, "case": 0.2, "typo": 0.2}
SENTENCE = "a long sentence about Ann Lee who lives in New York and 北京 today"


def opened(kind: str, rows: list[dict[str, Any]], augment: dict[str, Any], seed: int = 0, **task: Any):
    data = DataConfig.model_validate({"train": {"rows": rows}, "validation": {"rows": rows}, "augment": augment})
    config = TASKS[kind].Config.model_validate({"kind": kind, **task})
    sources = TASKS[kind].open(config, Request(data, ("train", "validation"), Path("unused"), seed))
    assert isinstance(sources, TableSources)
    return config, sources


def copies(kind: str, rows: list[dict[str, Any]], augment: dict[str, Any] = EDITS, **options: Any):
    _, sources = opened(kind, rows, augment, **options)
    train = sources.tables["train"]
    assert list(train.rows[: len(rows)]) == rows == list(sources.tables["validation"].rows)
    assert train.numbers is not None and len(train.lines) == len(train.numbers) == len(rows) + sources.copies
    return train.rows[len(rows) :]


def test_copies_keep_their_labels_and_follow_from_seed_copy_and_row():
    rows = [{"text": f"{SENTENCE} number {i}", "label": "ab"[i % 2]} for i in range(10)]
    found = copies("classification", rows, {**EDITS, "copies": 2})
    assert len(found) == 20 and all(copy["label"] == rows[i % 10]["label"] for i, copy in enumerate(found))
    assert len({row["text"] for row in [*rows, *found]}) == 30
    assert found == copies("classification", rows, {**EDITS, "copies": 2})
    assert found[:10] == copies("classification", rows, EDITS)
    assert not {row["text"] for row in found} & {row["text"] for row in copies("classification", rows, seed=1)}
    _, sources = opened("classification", rows, EDITS)
    assert list(sources.texts()) == [row["text"] for row in rows]  # a tokenizer learns no slips
    assert [sources.tables["train"].number(i) for i in (0, 9, 10, 19)] == [1, 10, 1, 10]


def test_pairs_choices_and_sources():
    [copy] = copies("classification", [{"a": SENTENCE, "b": SENTENCE, "label": 0.5}], text=["a", "b"])
    assert copy["a"] != SENTENCE != copy["b"] and copy["a"] != copy["b"] and copy["label"] == 0.5
    row = {"question": SENTENCE, "choices": [SENTENCE, SENTENCE], "answer": 1}
    [copy] = copies("multiple_choice", [row], text="question", choices="choices", label="answer")
    assert copy["question"] != SENTENCE and {**copy, "question": SENTENCE} == row
    [copy] = copies("translation", [{"en": SENTENCE, "de": SENTENCE}])
    assert copy["en"] != SENTENCE and copy["de"] == SENTENCE


def test_entities_stay_whole():
    tokens, tags = SENTENCE.split(), ["O"] * 14
    tags[4:6], tags[9:11], tags[12] = ["B-PER", "I-PER"], ["B-LOC", "I-LOC"], "B-LOC"
    for tokens_cell, tags_cell in ((tokens, tags), (" ".join(tokens), " ".join(tags))):
        found = copies("tagging", [{"tokens": tokens_cell, "tags": tags_cell}], {**EDITS, "copies": 30})
        assert len(found) == 30
        for copy in found:
            assert len(copy["tokens"]) == len(copy["tags"])
            kept = [(word, tag) for word, tag in zip(copy["tokens"], copy["tags"], strict=True) if tag != "O"]
            assert kept == [(word, tag) for word, tag in zip(tokens, tags, strict=True) if tag != "O"]
            for first, second in (("Ann", "Lee"), ("New", "York")):
                assert copy["tokens"][copy["tokens"].index(first) + 1] == second
    found = copies("tagging", [{"tokens": "ann or bob left".split(), "tags": ["I-PER", "O", "I-PER", "O"]}],
                   {"delete": 0.9, "copies": 20})  # fmt: skip
    assert all(copy["tags"][:3] == ["I-PER", "O", "I-PER"] for copy in found)  # of IOB1, two entities stay two
    entities = [{"start": 22, "end": 29, "label": "PER"}, {"start": 43, "end": 51, "label": "LOC"}]
    assert [SENTENCE[e["start"] : e["end"]] for e in entities] == ["Ann Lee", "New York"]
    triples = [[e["start"], e["end"], e["label"]] for e in entities]
    written = {"text": SENTENCE, "entities": triples}
    assert copies("tagging", [written], EDITS, text="text", entities="entities")
    row = {"text": SENTENCE, "entities": list(reversed(entities))}
    for copy in copies("tagging", [row], {**EDITS, "copies": 30}, text="text", entities="entities"):
        spans = [copy["text"][e["start"] : e["end"]] for e in copy["entities"]]
        assert spans == ["New York", "Ann Lee"] and [e["label"] for e in copy["entities"]] == ["LOC", "PER"]
    with pytest.raises(UserError, match=r"data\.augment: no copy of the 1 rows .* came out otherwise"):
        copies("tagging", [{"tokens": ["a", "dog"], "tags": ["DET", "NOUN"]}])


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["New York", "York and"], "answer_start": [43, 47]},
        [{"text": "New York", "answer_start": 43}, {"text": "York and", "answer_start": 47}],
        ["New York", "York and"],
    ],
)
def test_answers_are_where_the_copy_says(answers):
    row = {"id": "x", "question": "Where does she live now?", "context": SENTENCE, "answers": answers}
    found = copies("question_answering", [row], {**EDITS, "copies": 30})
    for copy in found:
        assert copy["id"] is None and [a["text"] for a in copy["answers"]] == ["New York", "York and"]
        assert all(copy["context"].startswith(a["text"], a["answer_start"]) for a in copy["answers"])
    assert len({copy["context"] for copy in found}) == 30 and len({copy["question"] for copy in found}) > 20
    bad = {**row, "answers": ["nowhere"]}
    assert len(copies("question_answering", [row, bad], EDITS)) == 1


def test_cutoff_masks_its_share_of_the_copies_tokens(shared_data):
    tokenizer = loaded(shared_data / "tokenizers/bert-base-uncased")
    rows = [{"text": f"{SENTENCE} {i}", "label": "ab"[i % 2]} for i in range(60)]

    def masked(seed: int) -> list[np.ndarray]:
        config, sources = opened("classification", rows, {"cutoff": 0.2}, seed)
        data = DataConfig.model_validate({"augment": {"cutoff": 0.2}, "max_length": 24})
        task = TASKS["classification"].create(config, Context(data, tokenizer), sources)
        made = task.datasets(sources)
        validation, train = (made[split].examples() for split in ("validation", "train"))
        assert validation is not None and train is not None
        assert not any((e.tokens == tokenizer.mask_id).any() for e in validation.examples)
        examples = train.examples
        for plain, cut in zip(examples[:60], examples[60:], strict=True):
            same = cut.tokens == plain.tokens
            assert (cut.tokens[~same] == tokenizer.mask_id).all() and same[[0, -1]].all()
        return [example.tokens == tokenizer.mask_id for example in examples[60:]]

    share = np.concatenate(masked(0)).mean()
    assert 0.15 < share < 0.22
    assert all((a == b).all() for a, b in zip(masked(0), masked(0), strict=True))
    assert any((a != b).any() for a, b in zip(masked(0), masked(1), strict=True))
    config, sources = opened("classification", rows, {"cutoff": 0.2})
    data = DataConfig.model_validate({"augment": {"cutoff": 0.2}})
    task = TASKS["classification"].create(config, Context(data, byte_tokenizer(bos=False)), sources)
    with pytest.raises(UserError, match=r"data\.augment\.cutoff: the tokenizer has no mask token"):
        task.datasets(sources)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("film\tmovie\n\n# a comment\nfilm\tpicture\n", None),
        ("film movie\n", "line 1: expected a word and its synonyms, with tabs"),
        ("\n", "holds no line"),
    ],
)
def test_a_table_of_synonyms(text, problem, tmp_path):
    (tmp_path / "s.tsv").write_text(text, encoding="utf-8")
    augment = {"replace": 1.0, "synonyms": str(tmp_path / "s.tsv"), "copies": 20}
    rows = [{"text": "Film film", "label": "a"}]
    if problem is None:
        assert {w for row in copies("classification", rows, augment) for w in row["text"].split()} == {
            "Movie", "Picture", "movie", "picture"
        }  # fmt: skip
    else:
        with pytest.raises(UserError, match=problem):
            copies("classification", rows, augment)
    with pytest.raises(UserError, match=r"data\.augment\.synonyms: no file .*none"):
        copies("classification", rows, {**augment, "synonyms": str(tmp_path / "none")})


@pytest.mark.parametrize("kind", ["masked_lm", "embedding"])
def test_tasks_that_have_no_copies(kind):
    with pytest.raises(UserError, match=rf"data\.augment: task\.kind={kind} reads .* does not use it"):
        TASKS[kind].check_data_keys(DataConfig.model_validate({"augment": {"delete": 0.1}}))
