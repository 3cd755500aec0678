"""Entities and their scores against the definition of conlleval, written out again, and seqeval-like strictness."""

from __future__ import annotations

import random

import pytest

from jaxlm.metrics.entities import Entity, entities_of, entity_scores


def chunks(tags: list[str]) -> set[tuple[str, int, int]]:
    """conlleval's two rules, case by case as its script has them."""
    found, start = set(), None
    previous, kind = "O", ""
    for i, tag in enumerate([*tags, "O"]):
        mark, _, label = tag.partition("-")
        ends = (previous, mark) in {
            ("B", "B"), ("B", "O"), ("I", "B"), ("I", "O"), ("E", "E"), ("E", "I"), ("E", "O"), ("E", "B"), ("E", "S"),
            ("B", "S"), ("I", "S"), ("S", "S"), ("S", "B"), ("S", "I"), ("S", "E"), ("S", "O"),
        } or (previous != "O" and kind != label)  # fmt: skip
        begins = (previous, mark) in {
            ("B", "B"), ("I", "B"), ("O", "B"), ("O", "I"), ("E", "E"), ("E", "I"), ("E", "B"), ("O", "E"), ("O", "S"),
            ("B", "S"), ("I", "S"), ("E", "S"), ("S", "S"), ("S", "B"), ("S", "I"), ("S", "E"),
        } or (mark != "O" and kind != label)  # fmt: skip
        if ends and start is not None:
            found.add((kind, start, i))
            start = None
        if begins:
            start = i
        previous, kind = mark, label
    return found


def scores_by_hand(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    pairs = [(chunks(a), chunks(b)) for a, b in zip(gold, predicted, strict=True)]
    right, found, there = (sum(n) for n in zip(*((len(a & b), len(b), len(a)) for a, b in pairs), strict=True))
    precision, recall = right / found if found else 0.0, right / there if there else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def draw(rng: random.Random, marks: str) -> list[str]:
    tags = ["O", *(f"{mark}-{label}" for mark in marks for label in ("PER", "LOC", "x-y"))]
    return [rng.choice(tags) for _ in range(rng.randint(0, 12))]


@pytest.mark.parametrize("marks", ["BI", "I", "BIES"])
def test_random_tags_are_scored_as_conlleval_does(marks):
    rng = random.Random(0)
    for _ in range(300):
        gold = [draw(rng, marks) for _ in range(4)]
        predicted = [[t if rng.random() < 0.7 else rng.choice(["O", "B-PER", "I-LOC"]) for t in tags] for tags in gold]
        for tags in (*gold, *predicted):
            assert {tuple(entity) for entity in entities_of(tags)} == chunks(tags), tags
        found = entity_scores(*([entities_of(tags) for tags in side] for side in (gold, predicted)))
        assert {name: found[name] for name in ("precision", "recall", "f1")} == pytest.approx(
            scores_by_hand(gold, predicted)
        )


def test_entities_by_hand():
    assert entities_of(["I-A", "I-A", "B-A", "O", "I-B", "I-A"]) == [
        Entity("A", 0, 2), Entity("A", 2, 3), Entity("B", 4, 5), Entity("A", 5, 6)
    ]  # fmt: skip
    assert entities_of(["B-A", "M-A", "E-A", "S-B"]) == entities_of(["B-A", "I-A", "L-A", "U-B"])
    assert entities_of([]) == entities_of(["O"]) == []


@pytest.mark.parametrize(
    ("tags", "strict"),
    [
        (["B-A", "I-A", "O", "I-A"], [Entity("A", 0, 2)]),
        (["B-A", "I-B"], [Entity("A", 0, 1)]),
        (["S-A", "B-A", "E-A"], [Entity("A", 0, 1), Entity("A", 1, 3)]),
        (["B-A", "I-A", "S-B"], [Entity("B", 2, 3)]),
        (["B-A", "I-A", "E-A", "E-A"], [Entity("A", 0, 3)]),
    ],
)
def test_strict_entities_are_written_as_the_scheme_has_them(tags, strict):
    assert entities_of(tags, strict=True) == strict


def test_types_and_nothing():
    gold, predicted = [[Entity("A", 0, 1), Entity("B", 2, 4)]], [[Entity("A", 0, 1), Entity("C", 2, 4)]]
    found = entity_scores(gold, predicted)
    assert (found["f1/A"], found["f1/B"], found["f1/C"]) == (1, 0, 0)
    assert found["f1"] == 0.5 and found["f1_macro"] == pytest.approx(1 / 3)
    assert entity_scores([[]], [[]]) == {"precision": 0, "recall": 0, "f1": 0, "f1_macro": 0}
