"""The config schema: the sections of a run, and the section `task` of every registered kind. `loading` reads it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from jaxlm.config.generation import GenerationConfig
from jaxlm.config.model import ModelConfig
from jaxlm.config.training import CheckpointConfig, LoggingConfig, TrainConfig
from jaxlm.data.config import DataConfig
from jaxlm.optim.config import OptimizerConfig
from jaxlm.parallel.config import MeshConfig
from jaxlm.section import Section
from jaxlm.tasks import TASKS
from jaxlm.tasks.classification_config import ClassificationConfig
from jaxlm.tasks.records import TaskConfig


class Config(Section):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its directory: letters from a to z, digits, `.`, `_` and `-`, a letter or digit first."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of initialization, dropout and the order of the rows."""
    model: ModelConfig = ModelConfig()
    """What is trained, and how it is computed."""
    task: TaskConfig = ClassificationConfig()
    """What is learned, and from which columns."""
    data: DataConfig = DataConfig()
    """The rows, and how they become batches."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How gradients change the parameters."""
    generation: GenerationConfig = GenerationConfig()
    """How a model that writes does so."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    mesh: MeshConfig = MeshConfig()
    """How devices share the work."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state of a run is saved."""
    logging: LoggingConfig = LoggingConfig()
    """Where progress is written."""


def _kind(value: Any) -> Any:
    """The kind that a section names; without one it is classification, the everyday task."""
    return value.get("kind", "classification") if isinstance(value, dict) else getattr(value, "kind", None)


_known: tuple[str, ...] = ()


def include_registered_tasks() -> None:
    """Lets `task` be the section of any task in `TASKS`, those that were registered since the import included."""
    global _known
    if _known == tuple(TASKS):
        return
    field = Config.model_fields["task"]
    sections: Any = None
    for kind, task in TASKS.items():
        section = Annotated[task.Config, Tag(kind)]
        sections = section if sections is None else sections | section
    field.annotation, field.metadata = sections, [Discriminator(_kind)]
    Config.model_rebuild(force=True)
    _known = tuple(TASKS)


include_registered_tasks()
