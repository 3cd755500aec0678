"""The config section `optimizer`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jaxlm.section import Section


class OptimizerConfig(Section):
    """How gradients change the parameters."""

    name: Literal["adamw", "adafactor", "muon"] = "adamw"
    """Update rule (docs/optimizers.md); `muon`: of hidden matrices, AdamW for the rest."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak, reached at the end of the warm-up; `adafactor` multiplies it by each parameter's size."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled; not applied to biases and norm scales."""
    l2: float = Field(default=0.0, ge=0)
    """Plain L2: so many times the parameters are added to the clipped gradient; not of biases and norm scales. With
    Adam, `weight_decay` is nearly always the better one."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """The learning rate (and its decay) of each layer is that of the layer above times this; the head's is
    `learning_rate`."""
    b1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's mean of gradients."""
    b2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of Adam's mean of squared gradients."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to Adam's denominator."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of Muon's mean of gradients."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """How means of gradients and of their squares are stored: bfloat16 takes half the memory; `adafactor`: float32."""
    offload: bool = False
    """Keep the optimizer's state in the host's memory, where the devices can reach it; does not change the result."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after the warm-up, to the last step."""
    warmup: float = Field(default=0.0, ge=0)
    """Below 1: a fraction of all steps; from 1 on: steps."""
    end_factor: float = Field(default=0.0, ge=0, le=1)
    """Where linear and cosine end, as a fraction of `learning_rate`."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Global gradient norm bound; null: none."""

    @model_validator(mode="after")
    def _used(self) -> OptimizerConfig:
        unused = {"adamw": ("momentum",), "adafactor": ("b1", "b2", "eps", "momentum", "moment_dtype"), "muon": ()}[
            self.name
        ]
        fields = type(self).model_fields
        for key in unused:
            if getattr(self, key) != fields[key].default:
                raise ValueError(f"{key}: {self.name} has none; leave it out")
        return self
