"""The config sections of training few parameters: `model.lora` and `model.ia3`."""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from jaxlm.section import Section


class LoraConfig(Section):
    """Low-rank adapters: the model's own weights stay as they are, and a product of two thin matrices is learned beside
    the kernels that are named. The task's head is trained, too; a language model's output layer is not."""

    rank: int = Field(default=8, gt=0)
    """Width of the two matrices."""
    alpha: float = Field(default=16.0, gt=0)
    """The product is multiplied by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of a kernel's inputs that the product does not see while training."""
    targets: tuple[str, ...] = ("q", "v")
    """Kernels, by name (`q`, or `decoder/q` where several stacks have one) or by group: `attention`, `mlp`, `all`. A
    name that the family lacks is answered with all there are."""
    rslora: bool = False
    """Multiplies by alpha / sqrt(rank) instead, so that a higher rank is no lower a learning rate."""
    dora: bool = False
    """Learns the length of each output's weights apart from their direction."""

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @model_validator(mode="after")
    def _some(self) -> LoraConfig:
        if not self.targets:
            raise ValueError("targets: expected at least one kernel")
        return self


class IA3Config(Section):
    """Learned factors of activations: one number for each output, or input, of the kernels that are named, all 1 at
    first. The task's head is trained, too; a language model's output layer is not."""

    targets: tuple[str, ...] = ("k", "v", "down")
    """Kernels, as in `model.lora.targets`."""
    feedforward: tuple[str, ...] = ("down",)
    """Those of them whose inputs are multiplied, instead of their outputs; [] is none."""

    @model_validator(mode="after")
    def _some(self) -> IA3Config:
        if not self.targets:
            raise ValueError("targets: expected at least one kernel")
        return self
