"""The contract of encoder-decoders: texts are encoded once, and targets decoded step by step, as in the full pass."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.hf_folders import load_checkpoint, read_golden, write_checkpoint
from helpers.t5_models import model_of, of_segments
from helpers.text_pairs import Pair, pack_pairs, pairs
from helpers.tiny_models import FAST, tiny, token_logits, weights

from jaxlm.errors import UserError
from jaxlm.models import FAMILIES, Model

OTHERS = ("bart", "mbart", "marian", "pegasus")
MODELS = {
    "t5": model_of,
    "t5-v1_1": lambda: model_of("v1_1"),
    **{name: functools.partial(tiny, name, num_decoder_layers=2) for name in OTHERS},
    "lstm_seq2seq": functools.partial(tiny, "lstm_seq2seq", input_feeding=True),
    "gru_seq2seq": functools.partial(tiny, "gru_seq2seq", embed_dim=8),
}
SLOW = ("t5-v1_1", "mbart", "marian", "gru_seq2seq")  # of what the others have
encoder_decoders = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODELS]
)


def left_padded(rows: list[list[int]], width: int) -> dict[str, np.ndarray]:
    batch = {name: np.zeros((len(rows), width), np.int32) for name in ("tokens", "segment_ids", "positions")}
    for r, row in enumerate(rows):
        batch["tokens"][r, width - len(row) :] = row
        batch["segment_ids"][r, width - len(row) :] = 1
        batch["positions"][r, width - len(row) :] = np.arange(len(row))
    return batch


_compiled: dict[Any, Any] = {}


def encode(model: Model, params: Any, rows: list[list[int]], width: int = 9) -> Any:
    compiled = _compiled.setdefault((id(model), "encode"), jax.jit(model.encode, compiler_options=FAST))
    return compiled(params, **left_padded(rows, width))


def decode(model: Model, params: Any, batch: dict[str, np.ndarray], cache: Any, encoded: Any) -> tuple[np.ndarray, Any]:
    def step(params, batch, cache, encoded):
        outputs, cache = model.decode(params, **batch, cache=cache, encoded=encoded)
        return outputs.logits(), cache

    compiled = _compiled.setdefault((id(model), "decode"), jax.jit(step, compiler_options=FAST))
    logits, cache = compiled(params, batch, cache, encoded)
    return np.asarray(logits)[:, 0], cache


@encoder_decoders
def test_cached_decoding_equals_the_full_forward_pass(name):
    """Texts and prefixes of different lengths, padded on the left; two rows of the decoder read one text; rows of what
    is encoded may be taken and repeated between two steps."""
    model = MODELS[name]()
    params = weights(model)
    texts = [pair.tokens for pair in pairs(2, seed=3, longest=9)]
    targets = [pair.decoder_tokens + [9] * 8 for pair in pairs(4, seed=4)]
    width = max(map(len, targets))
    full = [pairs(1)[0]._replace(tokens=texts[i // 2], decoder_tokens=target) for i, target in enumerate(targets)]
    packed = pack_pairs([[pair] for pair in full], length=9, decoder_length=24)
    expected = token_logits(model, params, packed)

    batch = left_padded(targets, width)
    encoded, cache = encode(model, params, texts), model.init_cache(4, width + 3)
    for start, stop in ((0, width - 3), (width - 3, width - 2), (width - 2, width - 1), (width - 1, width)):
        piece = {key: value[:, start:stop] for key, value in batch.items()}
        logits, cache = decode(model, params, piece, cache, encoded)
        for row, target in enumerate(targets):
            column = stop - 1 - (width - len(target))
            np.testing.assert_allclose(logits[row], expected[row, column], atol=3e-5, rtol=0)
        if stop == width - 1:  # from here on a text for each row of the decoder
            encoded = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), encoded)
    assert np.ptp(expected[:, len(targets[0]) - 1], axis=0).min() > 1e-3


@encoder_decoders
def test_texts_are_encoded_without_what_pads_them(name):
    model = MODELS[name]()
    params = weights(model)
    assert model.family.is_encoder_decoder
    rows = [[5, 6, 7], [8, 9, 10, 11, 12, 13]]
    prompt = left_padded([[model.config.decoder_start_id]] * 2, 1)
    first = decode(model, params, prompt, model.init_cache(2, 4), encode(model, params, rows))[0]
    batch = left_padded(rows, 9)
    right = {key: np.roll(value, -3, axis=1) for key, value in batch.items()}
    other = jax.jit(model.encode, compiler_options=FAST)(params, **right)
    np.testing.assert_allclose(
        decode(model, params, prompt, model.init_cache(2, 4), other)[0], first, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "name",
    ["bart", "lstm_seq2seq", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pegasus", "gru_seq2seq"))],
)
def test_packed_pairs_give_the_logits_they_give_alone_whatever_pads_them(name):
    model = MODELS[name]()
    params = weights(model)
    texts = pairs(8, seed=2)
    batch = pack_pairs([texts[:2], texts[2:4], texts[4:6], texts[6:], [], [], [], []])
    packed = of_segments(token_logits(model, params, batch), batch)
    alone = pack_pairs([[text] for text in texts])
    rng = np.random.default_rng(3)
    for stream in ("", "decoder_"):
        empty = alone[f"{stream}segment_ids"] == 0
        for part in ("tokens", "positions"):
            alone[f"{stream}{part}"][empty] = rng.integers(0, 24, empty.sum())
    for ours, single in zip(packed, of_segments(token_logits(model, params, alone), alone), strict=True):
        np.testing.assert_allclose(ours, single, atol=1e-5, rtol=0)
    assert np.ptp(np.concatenate(packed), axis=0).min() > 0.05


@pytest.mark.parametrize(
    "name",
    [
        *("t5", "t5-v1_1", "mt5", "bart", "pegasus", "lstm_seq2seq", "gru_seq2seq"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mbart", "marian")),
    ],
)
def test_golden_logits(name, tmp_path):
    golden = read_golden(f"{name}-seq2seq_lm")
    write_checkpoint(tmp_path, golden["config"], "seq2seq_lm")
    model, imported = load_checkpoint(tmp_path, "seq2seq_lm")
    assert imported.initialized == imported.ignored == ()
    texts = [Pair(**example) for example in golden["examples"]]
    batch = pack_pairs([texts[:2], texts[2:]])
    logits = of_segments(token_logits(model, imported.params, batch), batch)
    np.testing.assert_allclose([one[-1] for one in logits], golden["logits"], atol=1e-4, rtol=0)


def test_mistakes_are_named():
    model = tiny("gpt2")
    model = Model(model.family, model.config, "causal_lm", 0)
    batch = {key: jnp.asarray(value) for key, value in left_padded([[5]], 1).items()}
    assert not FAMILIES["gpt2"].is_encoder_decoder
    with pytest.raises(UserError, match="'gpt2' has no encoder beside a decoder; expected one such as t5"):
        model.encode({}, **batch)
