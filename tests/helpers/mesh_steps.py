"""One train step of a tiny encoder, decoder and encoder-decoder on every mesh preset: loss, gradients, collectives."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import numpy as np
import optax
from helpers.text_pairs import pack_pairs, pairs
from helpers.tiny_models import examples, inputs, pack, tiny, weights

from jaxlm.cost.hlo import Collective, collectives
from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import flatten, override
from jaxlm.nn.layers import ComputeConfig
from jaxlm.objectives import without_frozen
from jaxlm.objectives.classification import multiclass_loss
from jaxlm.objectives.language_model import language_model_loss
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules, batch_shardings
from jaxlm.tasks.language_model import NEXT_TOKEN_FIELDS
from jaxlm.training.gradients import accumulated_gradients
from jaxlm.training.state import TrainState, abstract_state, state_shardings
from jaxlm.training.step import make_train_step

Mesh = tuple[str, tuple[tuple[str, int], ...]]
"""A preset and the sizes given beside it."""
MESHES: dict[str, Mesh] = {
    "ddp": ("ddp", ()),
    "fsdp": ("fsdp", ()),
    "fsdp_tp": ("fsdp_tp", (("data", 2), ("fsdp", 2), ("tensor", 2))),
    "tp": ("tp", (("tensor", 2), ("data", -1))),
    "hybrid": ("hybrid", (("slices", 2),)),
    "context": ("context", (("context", 4), ("data", 2))),
}
WIDER: dict[str, Mesh] = {
    "fsdp_data": ("fsdp", (("data", 2), ("fsdp", 4))),
    "fsdp_tp_only": ("fsdp_tp", ()),
    "hybrid_tp": ("hybrid", (("slices", 2), ("fsdp", 2), ("tensor", 2))),
    "context_only": ("context", ()),
    "context_fsdp_tp": ("context", (("context", 2), ("fsdp", 2), ("tensor", 2))),
}
FAMILIES_HERE = ("bert", "llama", "t5")
CLASSIFIERS = ("albert", "bert", "deberta-v2", "modernbert", "mpnet")
"""Families whose step is that of a classifier."""
ROWS, LENGTH, SLOTS = 8, 24, 2


class Step(NamedTuple):
    """The results of one step, and what its compiled program sends between devices."""

    loss: float
    grads: dict[str, np.ndarray]
    collectives: list[Collective]


def rules_of(name: str | None) -> Rules:
    """Rules on the mesh of a name in MESHES or WIDER; None: without a mesh."""
    if name is None:
        return Rules()
    preset, sizes = {**MESHES, **WIDER}[name]
    return Rules(make_mesh(preset, **dict(sizes)))


@functools.cache
def model_of(family: str, mesh: str | None) -> Model:
    """A tiny model on the mesh of a name. Only BERT's hidden states are dropped out: dropout compiles for long."""
    compute = ComputeConfig(rules=rules_of(mesh))
    if family == "bert":
        return tiny("bert", compute, attention_dropout=0.0)
    if family in CLASSIFIERS:
        return tiny(family, compute)
    if family == "llama":
        return Model(FAMILIES["llama"], override(tiny("llama").config, {"tied": False}), "causal_lm", 0, compute)
    if family == "lstm_seq2seq":
        return tiny(family, compute, input_feeding=True, attention="additive", dropout=0.0)
    sizes = {"num_decoder_layers": 2, "dropout": 0.0}
    if family == "t5":
        sizes |= {"num_buckets": 8, "max_distance": 6, "head_dim": 4}
    return Model(FAMILIES[family], override(tiny(family).config, sizes), "seq2seq_lm", 0, compute)


def batch_of(family: str) -> dict[str, np.ndarray]:
    """Packed rows [1, R, ...] of uneven lengths, one of them empty: padding that must weigh nothing."""
    if FAMILIES[family].is_encoder_decoder:
        texts = pairs(11, seed=6)
        rows = [texts[:2], texts[2:4], *([text] for text in texts[4:8]), texts[8:11], []]
        batch = pack_pairs(rows, LENGTH, LENGTH)
        tokens, ids = batch["decoder_tokens"], batch["decoder_segment_ids"]
    else:
        texts = examples(11, seed=6)
        rows = [texts[:2], texts[2:3], texts[3:5], texts[5:6], texts[6:7], texts[7:8], texts[8:10], []]
        batch = pack(rows, LENGTH, SLOTS)
        if family in CLASSIFIERS:
            batch = inputs(batch, tiny(family)) | {"weights": batch["weights"]}
            batch["labels"] = np.random.default_rng(0).integers(0, 3, batch["weights"].shape).astype(np.int32)
            return {name: value[None] for name, value in batch.items()}
        batch = {name: batch[name] for name in ("tokens", "segment_ids", "positions")}
        tokens, ids = batch["tokens"], batch["segment_ids"]
    follows = np.concatenate([ids[:, 1:] == ids[:, :-1], np.zeros_like(ids[:, :1], bool)], 1) & (ids > 0)
    batch["labels"] = np.where(follows, np.roll(tokens, -1, 1), 0).astype(np.int32)
    batch["weights"] = follows.astype(np.float32)
    return {name: value[None] for name, value in batch.items()}


@functools.cache
def step_of(family: str, mesh: str | None, chunk: int | None = None) -> Step:
    """One step of plain gradient descent at rate 1, whose change of the parameters is the gradient.

    Args:
      chunk: of the cross-entropy.
    """
    model = model_of(family, mesh)
    rules = model.compute.rules
    loss = multiclass_loss() if family in CLASSIFIERS else language_model_loss(chunk=chunk)
    optimizer, key = optax.sgd(1.0), jax.random.key(0)
    gradients = accumulated_gradients(without_frozen(model.apply), loss, sharded=rules.mesh is not None)
    step = make_train_step(gradients, optimizer, optax.constant_schedule(1.0))
    params, batch = weights(model), batch_of(family)
    if rules.mesh is None:
        compiled = jax.jit(step).lower(TrainState(np.int32(0), params, optimizer.init(params), key), batch).compile()
        state, placed = TrainState(np.int32(0), params, optimizer.init(params), key), batch
    else:
        shardings = state_shardings(model.shapes, optimizer, rules)
        placed = jax.device_put(
            batch, batch_shardings(batch, rules, () if family in CLASSIFIERS else NEXT_TOKEN_FIELDS, leading=1)
        )
        abstract = abstract_state(model.shapes, optimizer, key, rules)
        compiled = jax.jit(step, out_shardings=(shardings, None)).lower(abstract, placed).compile()
        state = jax.device_put(TrainState(np.int32(0), params, optimizer.init(params), key), shardings)
    new, metrics = compiled(state, placed)
    before, after = flatten(params), flatten(jax.device_get(new.params))
    grads = {name: before[name] - after[name] for name in before}
    return Step(float(metrics["loss"]), grads, collectives(compiled.as_text()))
