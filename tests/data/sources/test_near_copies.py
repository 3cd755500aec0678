"""Near-copies: the rule, looked up in an index, and clusters."""

from __future__ import annotations

import random

from jaxlm.data.sources.near_copies import CopyIndex, cluster_near_copies


def near(text: str, other: str) -> bool:
    """The rule, word by word."""

    def shingles(text: str) -> set[str]:
        words = "".join(c.lower() if c.isalnum() or c == "_" else " " for c in text).split()
        return {" ".join(words[i : i + 5]) for i in range(len(words) - 4)} or {" ".join(words)}

    own, theirs = shingles(text), shingles(other)
    return len(own & theirs) / min(len(own), len(theirs)) >= 0.5


def test_the_index_finds_what_the_rule_says():
    generator = random.Random(0)
    words = [" ".join(generator.choices("Abc def, ghi", k=1)[0] for _ in range(9)) for _ in range(3)]
    base = [" ".join(generator.choices("one two three four Five six, seven".split(), k=12)) for _ in range(6)]
    texts = [*words, *base, "", "a b", "A, b!"]
    for text in base:
        kept = text.split()
        texts += [" ".join(kept[:k] + ["new"] * (12 - k)) for k in (5, 8, 9, 12)]
    index = CopyIndex(texts)
    pairs = 0
    for text in texts:
        expected = [i for i, other in enumerate(texts) if near(text, other)]
        assert sorted(index.find(text)) == expected, text
        assert text in index
        pairs += len(expected)
    assert pairs > 2 * len(texts) and "entirely other words than those" not in index


def test_clusters_are_transitive_and_ignore_case_and_punctuation():
    a = "one two three four five six seven"
    b = "One two, three four five six SEVEN!"
    c = b + " eight nine ten eleven twelve"
    d = "eight nine ten eleven twelve"
    other = "the quick brown fox jumps over the lazy dog"
    assert cluster_near_copies([d, other, c, a, b]) == [b, other, b, b, b]
