"""A pretraining run without its corpus: task, model and batch shapes, for compiling a step that is not run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxlm.config.schema import Config
from jaxlm.errors import RunFailure, UserError
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.models import get_family
from jaxlm.setup.model import build_model
from jaxlm.setup.setup import Setup
from jaxlm.setup.tokenizer import make_tokenizer, open_checkpoint
from jaxlm.tasks import PRETRAINING
from jaxlm.tokenizer.stand_in import stand_in_tokenizer
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.training.loaders import EmptyRows


def prepare_shapes(config: Config, devices: Sequence[Any]) -> tuple[Setup, EmptyRows, str]:
    """Returns a pretraining run's parts without data, batches of its shapes, and whose vocabulary that is.

    For a tokenizer that cannot be read, or would have to be trained, one of as many entries as the model's vocabulary
    stands in: shapes follow from it, and the ids of special tokens.

    Args:
      devices: that the mesh is made of.
    Raises:
      UserError: as the run itself would.
    """
    assert config.task.kind != "classification"
    checkpoint = open_checkpoint(config)
    tokenizer, source = _tokenizer(config, checkpoint)
    task = PRETRAINING[config.task.kind].from_tokenizer(config.task, tokenizer, config.data.max_length)
    model = build_model(config, task, tokenizer, checkpoint, devices=devices)
    setup = Setup(config, task, tokenizer, {}, {}, model, checkpoint)
    return setup, EmptyRows(config, task, setup.rules), source


def _tokenizer(config: Config, checkpoint: HFCheckpoint | None) -> tuple[Tokenizer, str]:
    model = config.model
    if model.train_tokenizer is None:
        try:
            return make_tokenizer(config, checkpoint, None, None), ""
        except (UserError, RunFailure):
            if model.tokenizer is None or checkpoint is not None:
                raise
    family = get_family(model.family or "", "model.family")
    sizes = family.presets.get(model.preset or "", family.config())
    size = model.config.get("vocab_size", sizes.vocab_size)
    source = f"not read ({model.tokenizer}): one of"
    if model.train_tokenizer is not None:
        size, source = model.train_tokenizer.vocab_size, "not trained: one of"
    return stand_in_tokenizer(family.name, size), f"{source} {size:,} entries stands in"
