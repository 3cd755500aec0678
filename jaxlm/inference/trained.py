"""A trained model, opened to be applied: a finished run, an HF-format directory, or a hub id."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.config.loading import load_config
from jaxlm.config.model import ModelConfig
from jaxlm.config.schema import Config
from jaxlm.data.config import DataConfig
from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import EMBEDDING, SENTENCE, HFCheckpoint
from jaxlm.hf.opening import open_model
from jaxlm.inference.evaluator import Evaluator
from jaxlm.local_paths import check_local
from jaxlm.parallel.config import MeshConfig
from jaxlm.parallel.mesh import choose_mesh
from jaxlm.run.run_dir import SUMMARY, RunDir
from jaxlm.setup.setup import Setup, make_setup
from jaxlm.tasks import TASKS
from jaxlm.tasks.base import Task
from jaxlm.tokenizer.saving import saved_limit

log = logging.getLogger("jaxlm")

_FROM_CHECKPOINT: dict[str, Any] = {
    "family": None,
    "preset": None,
    "config": {},
    "tokenizer": None,
    "train_tokenizer": None,
    "revision": None,
    "commit": None,
    "tokenizer_commit": None,
    "new_head": False,
    "freeze": (),
    "reinit_layers": 0,
    "mixout": 0.0,
    "frozen_dtype": "float32",
    "base": None,
    "lora": None,
    "ia3": None,
    "bitfit": False,
}
"""Keys of `model` that a trained model answers by itself."""
COMPUTE_KEYS = ("model.dtype", "model.matmul", "model.attention", "model.unroll", "model.logits_chunk")
"""Keys of `model` that say how to compute, not what."""


@dataclass(frozen=True)
class TrainedModel:
    """The parts of a run around trained parameters."""

    setup: Setup
    params: Any
    evaluator: Evaluator

    @property
    def parts(self) -> tuple[Any, Any]:
        """The parameters as the evaluator takes them: trained and frozen ones."""
        return self.setup.split.split(self.params)


def run_config(name: str, overrides: Sequence[str] = ()) -> Config | None:
    """The config of a run directory; None where `name` is none.

    Args:
      overrides: `key.path=value`. A mesh that they ask for replaces the run's sizes, which go together.
    """
    check_local(name, "--run")
    path = RunDir(Path(name).expanduser()).config
    sizes = [key for key in MeshConfig.model_fields if key != "preset"]
    replaced = [f"mesh.{key}=null" for key in sizes] if asks_for_mesh(overrides) else []
    if not path.is_file():
        return None
    config = load_config(path, [*replaced, *overrides])
    if config.train.seeds is not None or config.train.folds is not None:
        summary = RunDir(path.parent).read_json(SUMMARY) or {}
        best = f", the best is {Path(name) / summary['best']}" if summary.get("best") else ""
        raise UserError(f"--run {name}: it holds several runs; expected one of them{best}")
    return config


def asks_for_mesh(overrides: Sequence[str]) -> bool:
    """Returns whether one of the overrides is of the section `mesh`."""
    return any(re.match(r"\s*mesh\s*[.=]", override) for override in overrides)


def open_trained(name: str, config: Config, splits: Sequence[str] = (), *, keep_mesh: bool = False) -> TrainedModel:
    """Opens the model in `name` with the task, data and settings of a config, its parameters split over the mesh.

    Args:
      config: the run's, or `checkpoint_config`; its `model.init` and the like are replaced.
      splits: whose data are opened, too.
      keep_mesh: the mesh of the config was asked for; otherwise the automatic one replaces it where it does not fit.
    Raises:
      UserError: no model there, or one without a trained head for the task; a mesh that does not fit.
    """
    model = config.model.model_copy(update={**_FROM_CHECKPOINT, "init": name})
    mesh = config.mesh if keep_mesh else _fitting_mesh(config.mesh)
    setup = make_setup(config.model_copy(update={"model": model, "mesh": mesh}), splits=splits, trained=True)
    params, initialized = setup.init_params()
    if initialized:
        raise UserError(
            f"--run {name}: the checkpoint has no trained head ({', '.join(initialized)} are missing); fine-tune it "
            "first"
        )
    return TrainedModel(setup, params, make_evaluator(setup))


def _fitting_mesh(mesh: MeshConfig) -> MeshConfig:
    """The mesh of the run where it fits the devices that are here, else the automatic one."""
    try:
        choose_mesh(mesh, 0, lambda _: True)
    except UserError as error:
        log.info("the mesh of the run does not fit these devices (%s): mesh.preset=auto", error)
        return MeshConfig()
    return mesh


def make_evaluator(setup: Setup) -> Evaluator:
    """The evaluator of a run's model and task."""
    return Evaluator(setup.model, setup.task, setup.layout, setup.apply, setup.split.merge)


def checkpoint_config(name: str, text: str | Sequence[str] | None) -> Config:
    """A config for a model that no run of jaxlm's made: the task is that of its head, the settings are the defaults.

    Args:
      text: text column, or the two columns of a pair; None: the task's own default.
    Raises:
      UserError: no model there, or a head that answers no rows.
    """
    checkpoint = open_model(name, key="--run")
    task = task_of(checkpoint)
    columns = None if text is None else [text] if isinstance(text, str) else list(text)
    limits = [512, checkpoint.model_config.max_positions]
    if checkpoint.head == "seq2seq_lm":
        limits[0] = saved_limit(checkpoint.directory) or limits[0]
    elif checkpoint.head == EMBEDDING:
        limits[0] = checkpoint.head_config[SENTENCE].max_length or limits[1]
    return Config(
        name="predict",
        model=ModelConfig(init=name),
        task=task.Config.of_checkpoint() if columns is None else task.Config.of_texts(columns),
        data=DataConfig(max_length=min(limits)),
    )


def task_of(checkpoint: HFCheckpoint) -> type[Task]:
    """The task that a checkpoint's head was trained for; classification where config.json names no head."""
    head = checkpoint.head or "classification"
    found = next((task for task in TASKS.values() if task.head == head and task.predicts), None)
    if found is None:
        raise UserError(
            f"{checkpoint.directory}: a model with a {head} head answers no rows by itself; fine-tune it (model.init)"
        )
    return found
