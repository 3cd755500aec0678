"""The config section `mesh`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jaxlm.section import Section


class MeshConfig(Section):
    """How devices share the work: sizes whose product is the number of devices; one may be -1, the rest."""

    preset: Literal["auto", "ddp", "fsdp", "fsdp_tp", "tp", "hybrid", "context"] = "auto"
    """Sizes where none is given. `ddp`: all on data. `fsdp`: all on fsdp. `fsdp_tp`: tensor 2, the rest on fsdp. `tp`:
    all on tensor. `hybrid`: data across slices, the rest on fsdp. `context`: all on context. `auto`: ddp while
    parameters, gradients and AdamW state take at most half of a device's memory (16 GiB are assumed of a CPU), else
    fsdp (hybrid across TPU slices) while each device's share does, else fsdp_tp."""
    data: int | None = Field(default=None, ge=-1)
    """Groups that each hold a whole copy of the parameters, and rows of their own; absent: 1, or what `preset` says."""
    fsdp: int | None = Field(default=None, ge=-1)
    """Devices with rows of their own that share one copy of parameters and optimizer state (ZeRO-3); absent: 1, or what
    `preset` says."""
    context: int | None = Field(default=None, ge=-1)
    """Devices that split each row's tokens, for long rows, and also share the parameters; row lengths must be multiples
    of it; absent: 1, or what `preset` says."""
    tensor: int | None = Field(default=None, ge=-1)
    """Devices that split heads, MLP columns and vocabulary; absent: 1, or what `preset` says."""
    slices: int | None = Field(default=None, gt=0)
    """Number of groups of devices that a slow network connects; only `data`, a multiple of it, crosses that network;
    absent: the number of TPU slices; of other devices, the number of hosts under hybrid, otherwise 1."""
