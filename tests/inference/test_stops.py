"""Stop strings as an automaton over tokens, also where a character's bytes are several tokens."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlm.inference.stops import stop_table
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.tokenizer.training import train_tokenizer

LETTERS = ["a", "b", "é", "。", "😀", " ", "<"]


@pytest.fixture(scope="module", params=[("byte_bpe", "gpt2", 270), ("bpe", "llama", 323)])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Some characters are tokens; others are bytes, in entries of either spelling."""
    kind, family, size = request.param
    return train_tokenizer(
        ["ab é", "ab 。。 <b", "ab ab é é"] * 3, TokenizerTrainingConfig(type=kind, vocab_size=size, family=family)
    )


@pytest.mark.parametrize("stop", [("é",), ("。b", "😀"), ("a b", "b<"), ("a。",), ("😀😀", " é")])
def test_a_text_ends_where_it_has_the_bytes_of_a_stop_string(stop, tokenizer):
    rng, table = np.random.default_rng(0), stop_table(tokenizer, stop, tokenizer.vocab_size)
    before, endings = tokenizer.encode_prompt("c"), set()
    for _ in range(60):
        [[encoding]] = tokenizer.encode(["".join(rng.choice(LETTERS, 9))], special_tokens=False)
        ids = encoding.ids.tolist()
        # The first token by which the text holds one; half a character at its end is no part of it.
        texts = [tokenizer.decode([*before, *ids[:n]]) for n in range(1, len(ids) + 1)]
        expected = next((n for n, text in enumerate(texts, 1) if any(string in text for string in stop)), None)
        state, found = 0, None
        for n, token in enumerate(ids, 1):
            if table.ends[state, token]:
                found = n
                break
            state = int(table.following[state, token])
        assert found == expected
        endings.add(found)
    assert len(endings) > 2
