"""Mistakes in mesh and batches, found before any text is read or tokenized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxlm.config.schema import Config
from jaxlm.data.corpus.dataset import train_rows
from jaxlm.data.examples.dataset import check_layout
from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.models import Model
from jaxlm.models.base import override
from jaxlm.parallel.mesh import choose_mesh
from jaxlm.parallel.sharding import Rules
from jaxlm.setup.layout import make_layout
from jaxlm.setup.model import make_compute, on_mesh, sizes_of
from jaxlm.tasks import TASKS
from jaxlm.tasks.base import CorpusTask


def check_mesh(
    config: Config, checkpoint: HFCheckpoint | None, splits: Sequence[str], devices: Sequence[Any] | None = None
) -> None:
    """Checks what needs neither data nor tokenizer.

    Raises:
      UserError: a kernel that the devices lack; a mesh that does not fit them, or that does not divide the model's
        sizes; as `check_batches`, where the mesh does not depend on the model.
    """
    mesh, why = choose_mesh(config.mesh, 0, lambda _: True, devices)
    platform = Rules(mesh).platform
    if config.model.attention == "cudnn" and platform != "gpu":
        raise UserError(f"model.attention=cudnn: cuDNN is of GPUs, and this is a {platform}: set model.attention=auto")
    if config.mesh.preset != "auto":
        check_batches(config, Rules(mesh, description=why), splits)
    if config.model.train_tokenizer is not None and mesh.size > 1:  # texts are read before the model is built
        kind = TASKS[config.task.kind]
        family, sizes, _ = sizes_of(config, checkpoint, None)
        sizes = override(sizes, kind.model_overrides(config.task))
        num_outputs = 0 if issubclass(kind, CorpusTask) else 2
        on_mesh(
            Model(family, sizes, kind.head_of(family.heads), num_outputs, make_compute(config.model, Rules())),
            config,
            devices,
        )


def check_batches(config: Config, rules: Rules, splits: Sequence[str]) -> None:
    """Checks training batches; rows whose length follows from the data are checked when it is known.

    Raises:
      UserError: batches that do not divide over the mesh, or settings that contradict each other.
    """
    if "train" not in splits or config.data.train is None:
        return
    corpus = issubclass(TASKS[config.task.kind], CorpusTask)
    layout = make_layout(config, rules)
    train_rows(layout) if corpus else check_layout(layout)
    key, length = ("data.max_length", layout.max_length) if corpus else ("data.row_length", layout.row_length)
    ways = rules.size("context")
    if ways > 1 and length is not None and length % ways:
        raise UserError(
            f"mesh.context={ways}: rows of {key}={length} columns cannot be split {ways} ways; make it a multiple of "
            f"{ways}"
        )
