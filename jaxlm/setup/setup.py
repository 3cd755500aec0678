"""From a config to everything a run needs: data, tokenizer, task, mesh and model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxlm.config.schema import Config
from jaxlm.errors import Stop
from jaxlm.hf.checkpoint import HFCheckpoint, load_params
from jaxlm.models import Model
from jaxlm.parallel.sharding import Rules
from jaxlm.setup.model import build_model
from jaxlm.setup.tokenizer import open_checkpoint
from jaxlm.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("jaxlm")

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Setup:
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
    checkpoint: HFCheckpoint | None
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


def make_setup(
    config: Config,
    *,
    tokenizer_cache: Path | None = None,
    splits: Sequence[str] = SPLITS,
    stop: Stop = lambda: None,
    devices: Sequence[Any] | None = None,
) -> Setup:
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
    from jaxlm.data.corpus.dataset import prepare_corpora
    from jaxlm.data.examples.tables import prepare_rows

    checkpoint = open_checkpoint(config)
    make = prepare_rows if config.task.kind == "classification" else partial(prepare_corpora, stop=stop)
    task, tokenizer, data, cleaned = make(config, checkpoint, tokenizer_cache, splits)
    model = build_model(config, task, tokenizer, checkpoint, devices=devices)
    return Setup(config, task, tokenizer, data, cleaned, model, checkpoint)
