"""Tiny models and hand-packed batches that the model tests share."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import BATCH_INPUTS, override
from jaxlm.nn.layers import ComputeConfig

SIZES = {"vocab_size": 64, "num_layers": 3, "embed_dim": 16, "num_heads": 4, "mlp_dim": 32, "max_positions": 24}
"""Layers: an odd number, so that a scan of two has a remainder. The rest divides by eight devices."""
FAMILY_SIZES = {
    "albert": {"table_dim": 8, "num_groups": 2},
    "bert": {},
    "deberta-v2": {"num_buckets": 8, "max_distance": 12, "num_types": 2, "absolute_positions": True},
    "distilbert": {},
    "electra": {"table_dim": 8},
    "gpt2": {"pad_id": 0},
    "llama": {"num_kv_heads": 2, "pad_id": 0},
    "modernbert": {"local_attention": 6, "pad_id": 0},
    "mpnet": {},
    "roberta": {"num_types": 2},
}
VARIANT_SIZES = {
    "bart": {"decoder_start_id": 0},
    "gru": {"hidden_dim": 16},
    "gru_seq2seq": {"hidden_dim": 16, "attention": "additive"},
    "lstm": {"hidden_dim": 16},
    "lstm_seq2seq": {"hidden_dim": 16},
    "marian": {"pad_id": 0, "decoder_start_id": 0},
    "mbart": {"decoder_start_id": 0},
    "mistral": {"num_kv_heads": 2, "window": 4, "pad_id": 0},
    "mt5": {"head_dim": 6},
    "qwen2": {"num_kv_heads": 2, "pad_id": 0},
    "qwen3": {"num_kv_heads": 2, "head_dim": 6, "pad_id": 0},
    "t5": {"head_dim": 6},
}
"""Families that have the trunk of one under contract, or a contract test of their own."""
ENCODERS = [name for name, family in FAMILIES.items() if family.inputs == BATCH_INPUTS]
NUM_OUTPUTS = 3
FAST = {"xla_backend_optimization_level": 0}
"""Compiler options: tiny models compile for longer than they run."""


@functools.cache
def tiny(family: str, compute: ComputeConfig | None = None, **changes) -> Model:
    """A tiny classifier, or the family's first head; the same object, hence one compilation, for the same arguments."""
    record = FAMILIES[family]
    preset = next(iter(record.presets.values()))
    fields = {field.name for field in dataclasses.fields(preset)}
    sizes = {name: size for name, size in SIZES.items() if name in fields}
    config = override(preset, {**sizes, **(FAMILY_SIZES | VARIANT_SIZES).get(family, {}), **changes})
    head = "classification" if "classification" in record.heads else next(iter(record.heads))
    return Model(record, config, head, NUM_OUTPUTS, compute or ComputeConfig())


def weights(model: Model, seed: int = 0):
    """Parameters far from initialisation: no zero biases, no unit scales, attention that is not uniform."""
    rng = np.random.default_rng(seed)

    def draw(path, struct):
        centre = 1.0 if jax.tree_util.keystr(path, simple=True).endswith("_scale") else 0.0
        return rng.normal(centre, 0.3, struct.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, model.shapes)


class Example(NamedTuple):
    tokens: list[int]
    token_types: list[int]


def examples(num: int, seed: int = 0, longest: int = 9) -> list[Example]:
    """Random texts and, every other one, pairs: token type 1 from some token on."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(num):
        length = int(rng.integers(2, longest + 1))
        second = int(rng.integers(1, length)) if i % 2 else length
        made.append(Example(rng.integers(4, 64, length).tolist(), [0] * second + [1] * (length - second)))
    return made


def pack(rows: Sequence[Sequence[Example]], length: int, slots: int, pad_id: int = 0) -> dict[str, np.ndarray]:
    """Lays examples out by hand, row by row, as docs/design.md describes the packed batch."""
    batch = {
        "tokens": np.full((len(rows), length), pad_id, np.int32),
        **{name: np.zeros((len(rows), length), np.int32) for name in ("segment_ids", "positions", "token_types")},
        "slot_positions": np.zeros((len(rows), slots), np.int32),
        "weights": np.zeros((len(rows), slots), np.float32),
    }
    for r, row in enumerate(rows):
        start = 0
        for s, example in enumerate(row):
            end = start + len(example.tokens)
            assert end <= length
            batch["tokens"][r, start:end] = example.tokens
            batch["token_types"][r, start:end] = example.token_types
            batch["segment_ids"][r, start:end] = s + 1
            batch["positions"][r, start:end] = np.arange(end - start)
            batch["slot_positions"][r, s] = start
            batch["weights"][r, s] = 1.0
            start = end
    return batch


def inputs(batch, model: Model):
    """What a classifier reads of a batch; its slots are at each example's first token or at its last."""
    arrays = {name: batch[name] for name in model.family.inputs if name in batch}
    if model.family.pool == "last" and "slot_positions" in batch:
        numbers = np.arange(1, batch["slot_positions"].shape[1] + 1, dtype=np.int32)
        lengths = (batch["segment_ids"][:, None, :] == numbers[None, :, None]).astype(np.int32).sum(-1)
        arrays["slot_positions"] = batch["slot_positions"] + lengths - (lengths > 0).astype(np.int32)
    return arrays


def assert_close(actual, expected, tolerance: float = 1e-5) -> None:
    """Trees are equal, each leaf to `tolerance` of its largest value: gradients differ in size by orders.

    Of a leaf that is 0 but for rounding (the bias of keys, which a softmax cancels), only that it is so.
    """
    ours, theirs = (dict(jax.tree_util.tree_leaves_with_path(jax.device_get(tree))) for tree in (actual, expected))
    assert ours.keys() == theirs.keys()
    overall = max(np.abs(leaf).max() for leaf in theirs.values())
    for path, leaf in theirs.items():
        error, largest = np.abs(ours[path] - leaf).max(), np.abs(leaf).max()
        limit = tolerance * (largest if largest > 1e-5 * overall else overall)
        assert error <= limit, f"{jax.tree_util.keystr(path)}: {error} > {limit}, the largest value is {largest}"


_compiled: dict[Any, jax.stages.Wrapped] = {}


def apply(model: Model, params, batch, key: jax.Array | None = None) -> np.ndarray:
    """The model's outputs; one compilation per model and shape."""
    compiled = _compiled.setdefault(id(model), jax.jit(model.apply, compiler_options=FAST))  # keeps the model alive
    return np.asarray(compiled(params, inputs(batch, model), key))


def column_gradients(states, extra: jax.Array, length: int) -> jax.Array:
    """How much each of the `length` rows of states(extra) changes with each row of `extra`: [length, len(extra)].

    Row by row: jaxlib 0.10.2 for CPU gets the gradient of a norm wrong for many cotangents at once (`jax.jacrev`).
    """
    width = jax.eval_shape(states, extra).shape[-1]
    mix = np.random.default_rng(0).normal(size=width).astype(np.float32)
    one = jax.grad(lambda extra, row: (states(extra)[row] * mix).sum())
    return jax.lax.map(lambda row: jnp.abs(one(extra, row)).max(-1), jnp.arange(length))


def formula_tensor(key: str, shape: Sequence[int]) -> np.ndarray:
    """Weights that a golden file needs not hold: normal(c, 0.3), seeded by the HF key; c is 1 for norm scales, else 0.

    NumPy never changes the stream of `RandomState`.
    """
    centre = 1.0 if "norm" in key.lower() and key.endswith("weight") else 0.0
    return np.random.RandomState(zlib.crc32(key.encode())).normal(centre, 0.3, shape).astype(np.float32)


def token_logits(model: Model, params, batch, key: jax.Array | None = None) -> np.ndarray:
    """A language model's logits at the slots, or at all positions of a batch without slots; compiled once per model."""

    def logits(params, arrays, key):
        return model.apply(params, arrays, key).logits()

    compiled = _compiled.setdefault((id(model), "logits"), jax.jit(logits, compiler_options=FAST))
    return np.asarray(compiled(params, {name: batch[name] for name in model.family.inputs if name in batch}, key))
