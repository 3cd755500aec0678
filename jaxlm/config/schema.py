"""The config schema: every key a user may write, its type, range and default. `configfile` reads it from YAML."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from jaxlm.config.model import ModelConfig
from jaxlm.config.training import CheckpointConfig, LoggingConfig, TrainConfig
from jaxlm.data.config import DataConfig
from jaxlm.optim.config import OptimizerConfig
from jaxlm.parallel.config import MeshConfig
from jaxlm.section import Section
from jaxlm.tasks.causal_lm import CausalLMConfig
from jaxlm.tasks.classification import ClassificationConfig
from jaxlm.tasks.masked_lm import MaskedLMConfig
from jaxlm.tasks.prefix_lm import PrefixLMConfig
from jaxlm.tasks.replaced_tokens import ReplacedTokensConfig
from jaxlm.tasks.span_corruption import SpanCorruptionConfig


def _kind(value: Any) -> Any:
    """The kind that a section names; without one it is classification, the everyday task."""
    return value.get("kind", "classification") if isinstance(value, dict) else getattr(value, "kind", None)


TaskConfig = Annotated[
    Annotated[ClassificationConfig, Tag("classification")]
    | Annotated[CausalLMConfig, Tag("causal_lm")]
    | Annotated[PrefixLMConfig, Tag("prefix_lm")]
    | Annotated[MaskedLMConfig, Tag("masked_lm")]
    | Annotated[SpanCorruptionConfig, Tag("span_corruption")]
    | Annotated[ReplacedTokensConfig, Tag("replaced_tokens")],
    Discriminator(_kind),
]


class Config(Section):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its directory: letters, digits, `.`, `_` and `-`."""
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
    train: TrainConfig = TrainConfig()
    """The training loop."""
    mesh: MeshConfig = MeshConfig()
    """How devices share the work."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state of a run is saved."""
    logging: LoggingConfig = LoggingConfig()
    """Where progress is written."""
