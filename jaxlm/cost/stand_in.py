"""The parts of a run whose step is compiled and not run: without corpus, and with a stand-in for its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxlm.config.schema import Config
from jaxlm.errors import RunFailure, UserError
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.models import get_family
from jaxlm.setup.model import build_model
from jaxlm.setup.setup import Setup, make_context, make_setup
from jaxlm.setup.tokenizer import make_tokenizer, open_checkpoint
from jaxlm.tasks import TASKS
from jaxlm.tasks.base import CorpusTask
from jaxlm.tokenizer.stand_in import stand_in_tokenizer
from jaxlm.tokenizer.tokenizer import Tokenizer


def setup_for_shapes(config: Config, devices: Sequence[Any]) -> tuple[Setup, str]:
    """Returns a run's parts for a step that is compiled and not run, and what stands in for its tokenizer, if anything.

    Shapes of labelled rows depend on the rows, which are read. Shapes of a corpus do not: it is not read, and for a
    tokenizer that cannot be read, or would have to be trained, one of as many entries as the model's vocabulary stands
    in; shapes follow from it, and the ids of special tokens.

    Args:
      devices: of the mesh.
    Raises:
      UserError: as the run itself would.
    """
    task_type = TASKS[config.task.kind]
    if not issubclass(task_type, CorpusTask):
        return make_setup(config, splits=("train",), devices=devices), ""
    task_type.check_data_keys(config.data)
    checkpoint = open_checkpoint(config)
    tokenizer, source = _tokenizer(config, checkpoint)
    task = task_type.create(config.task, make_context(config, tokenizer, checkpoint), None)
    assert isinstance(task, CorpusTask)
    model = build_model(config, task, tokenizer, checkpoint, devices=devices)
    return Setup(config, task, tokenizer, {"train": task.empty_dataset()}, {}, model, checkpoint), source


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
