"""From a config to everything a run needs: data, tokenizer, task, mesh and model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxlm.config import Config, ModelConfig
from jaxlm.data.token_builder import Stop
from jaxlm.data.tokenize import Tokenizer, load_tokenizer
from jaxlm.data.train_tokenizer import train_tokenizer
from jaxlm.errors import UserError
from jaxlm.hf.hub import resolve
from jaxlm.hf.io import Checkpoint, load_params
from jaxlm.layers import Compute
from jaxlm.mesh_choice import choose_mesh
from jaxlm.models import Model, get_family
from jaxlm.models.base import override
from jaxlm.sharding import Rules, param_shardings

log = logging.getLogger("jaxlm")

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Prepared:
    """A run's parts, before any parameter exists."""

    config: Config
    task: Any
    """One of `tasks`."""
    tokenizer: Tokenizer
    splits: dict[str, Any]
    """By name: `tasks.classification.Examples` of labelled rows, or `prepare_corpora.CorpusSplit`."""
    cleaned: dict[str, int]
    """What the cleaning did, counted."""
    model: Model
    checkpoint: Checkpoint | None
    """Where the parameters come from; None: drawn at random."""

    @property
    def rules(self) -> Rules:
        return self.model.compute.rules

    def init_params(self) -> tuple[Any, tuple[str, ...]]:
        """Reads or draws the parameters; returns them and the names of those that no checkpoint held."""
        key = jax.random.key(self.config.seed)
        if self.checkpoint is not None:
            imported = load_params(self.checkpoint, self.model, key, new_head=self.config.model.new_head)
            return imported.params, imported.initialised
        shardings = jax.tree.map(lambda s: s.sharding, self.model.shapes)
        return jax.jit(self.model.init, out_shardings=shardings)(key), ()


def prepare(
    config: Config,
    *,
    tokenizer_cache: Path | None = None,
    splits: Sequence[str] = SPLITS,
    stop: Stop = lambda: None,
    devices: Sequence[Any] | None = None,
) -> Prepared:
    """Loads, checks and tokenizes a config's data and builds its model.

    Args:
      tokenizer_cache: directory where a tokenizer trained for this run is kept.
      splits: those to load of train, validation, test.
      stop: asked while a corpus is read; names the signal that asks for an end, if any.
      devices: that the mesh is made of; absent: all.
    Raises:
      Interrupted: it did; what is tokenised so far is saved.
      UserError: whatever the user's config, data or checkpoint got wrong.
    """
    # Here, because both build on this module.
    from jaxlm.prepare_corpora import prepare_corpora
    from jaxlm.prepare_rows import prepare_rows

    checkpoint = open_checkpoint(config)
    make = prepare_rows if config.task.kind == "classification" else partial(prepare_corpora, stop=stop)
    task, tokenizer, data, cleaned = make(config, checkpoint, tokenizer_cache, splits)
    model = build_model(config, task, tokenizer, checkpoint, devices=devices)
    return Prepared(config, task, tokenizer, data, cleaned, model, checkpoint)


def open_checkpoint(config: Config) -> Checkpoint | None:
    """What `model.init` names, its config.json read and checked before any data; None without it."""
    if config.model.init is None:
        return None
    checkpoint = Checkpoint(resolve(config.model.init, key="model.init", revision=config.model.revision))
    checkpoint.model_config  # noqa: B018  an unsupported checkpoint is refused
    return checkpoint


def make_tokenizer(
    config: Config, checkpoint: Checkpoint | None, cache: Path | None, texts: Callable[[], Iterable[str]] | None
) -> Tokenizer:
    """Loads the tokenizer that a config names, or trains one.

    Args:
      cache: where a trained one is kept.
      texts: the training texts; None where the training split is not loaded.
    """
    model = config.model
    if model.train_tokenizer is None:
        if model.tokenizer is not None:
            return load_tokenizer(resolve(model.tokenizer, key="model.tokenizer"))
        if checkpoint is None:
            raise UserError(
                "model.tokenizer: expected a tokenizer directory, a hub id, or model.train_tokenizer without model.init"
            )
        return load_tokenizer(checkpoint.directory)
    if cache is not None and cache.is_dir():
        return load_tokenizer(cache)
    if texts is None:
        raise UserError("model.train_tokenizer: expected data.train to learn the vocabulary from")
    tokenizer = train_tokenizer(texts(), model.train_tokenizer)
    log.info("trained a %s vocabulary of %d entries", model.train_tokenizer.type, tokenizer.vocab_size)
    if cache is not None:
        tokenizer.save(cache)
    return tokenizer


def build_model(
    config: Config,
    task: Any,
    tokenizer: Tokenizer,
    checkpoint: Checkpoint | None,
    devices: Sequence[Any] | None = None,
) -> Model:
    """Returns the model on its mesh; UserError where config, tokenizer and checkpoint do not fit together."""
    model, where = config.model, "model.family"
    if checkpoint is not None:
        family, sizes, where = checkpoint.family, checkpoint.model_config, f"{checkpoint.directory}/config.json"
    else:
        family = get_family(model.family or "", "model.family")
        if model.preset is not None and model.preset not in family.presets:
            presets = ", ".join(family.presets)
            raise UserError(f"model.preset: {family.name} has no preset {model.preset!r}; it has {presets}")
        sizes = family.presets[model.preset] if model.preset else family.config()
        sizes = override(replace(sizes, **_from_tokenizer(sizes, tokenizer)), model.config)
    rates = {name: getattr(model, name) for name in ("dropout", "attention_dropout", "classifier_dropout")}
    sizes = override(sizes, {name: rate for name, rate in rates.items() if rate is not None})
    sizes = override(sizes, task.model_overrides)
    if task.head == "classification" and sizes.pad_id is None:
        # Transformers' classifiers by the last token find it by the padding behind it, and need an id for batches.
        sizes = replace(sizes, pad_id=tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id)
    if tokenizer.vocab_size > sizes.vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} ids, the model's vocab_size is {sizes.vocab_size}; "
            "they do not belong together"
        )
    if config.data.max_length > sizes.max_positions:
        raise UserError(
            f"data.max_length={config.data.max_length}: the model has {sizes.max_positions} positions; set it to at "
            f"most {sizes.max_positions}"
        )
    built = Model(family, sizes, task.head, task.num_outputs, make_compute(model, Rules()))
    shapes = built.shapes  # a head that the family lacks shows now

    def divides(mesh: Mesh) -> bool:
        try:
            param_shardings(built.axes, shapes, Rules(mesh))
        except UserError:
            return False
        return True

    mesh, why = choose_mesh(config.mesh, built.num_parameters, divides, devices)
    built = replace(built, compute=make_compute(model, Rules(mesh, why=why)))
    built.shapes  # noqa: B018  sizes that do not divide show now
    return built


def _from_tokenizer(sizes: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """Fields of a family's config that follow the tokenizer."""
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    if ids["pad_id"] is None and sizes.pad_id is not None:
        ids["pad_id"] = 0  # a family that must have one, and never reads what stands there
    known = {name: value for name, value in ids.items() if hasattr(sizes, name)}
    return {"vocab_size": tokenizer.vocab_size, **known}


def make_compute(model: ModelConfig, rules: Rules) -> Compute:
    """How to compute, from the config's knobs and the platform."""
    # Unrolled, XLA's CPU compiler saves the copies in and out of the loop; elsewhere compile time weighs more.
    unroll = model.unroll if model.unroll != "auto" else 1_000_000 if rules.platform == "cpu" else 1
    return Compute(jnp.dtype(model.dtype), model.attention, model.remat, unroll, rules)
