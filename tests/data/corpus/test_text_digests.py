"""Digests: sets of them, and those of texts in pieces."""

from __future__ import annotations

import numpy as np

from jaxlm.data.corpus.text_digests import DigestSet, TextDigest


def test_digest_sets_are_sets():
    rng = np.random.default_rng(0)
    found, expected = DigestSet(), set()
    for _ in range(60):
        digests = rng.integers(0, 3000, int(rng.integers(0, 200))).astype(np.uint64)
        new = []
        for digest in digests.tolist():
            new.append(digest not in expected)
            expected.add(digest)
        assert found.add(digests).tolist() == new
        assert len(found) == len(expected)
    probe = np.arange(3000, dtype=np.uint64)
    assert found.contains(probe).tolist() == [i in expected for i in range(3000)]
    assert (5 in found) == (5 in expected)
    again = DigestSet().add_all([np.asarray(sorted(expected), np.uint64), np.zeros(0, np.uint64)])
    assert len(again) == len(expected)


def test_digests_of_texts_know_no_pieces():
    whole, pieces = TextDigest(), TextDigest()
    whole.update("zwei é 三")
    for piece in ("zw", "ei é", " 三"):
        pieces.update(piece)
    assert (
        (whole.value(), whole.num_bytes)
        == (pieces.value(), pieces.num_bytes)
        == (whole.value(), len("zwei é 三".encode()))
    )
    assert TextDigest().value() != whole.value() < 2**64
