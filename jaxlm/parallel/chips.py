"""What accelerators can do at most, per device: memory, arithmetic, and the bandwidths of memory and links."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """One device as JAX shows it: a TPU chip (v4 and v5p: its two cores together) or a GPU."""

    name: str
    memory: int
    """Bytes."""
    flops: float
    """Per second, in bfloat16, dense."""
    memory_bandwidth: float
    """Bytes per second."""
    link_bandwidth: float
    """Bytes per second of all links between chips together, in one direction and the other."""
    clock: float | None = None
    """Hz of the compiler's cycle estimates; None where it makes none."""


# Bytes by `device_kind`, as JAX reports it, of devices that do not say so themselves: those that programs are compiled
# for ahead of time, above all. A device is a core of v2 and v3, and half a chip of 7x.
MEMORY = {
    kind: size * GIB
    for kind, size in {
        "TPU v2": 8, "TPU v3": 16, "TPU v4": 32, "TPU v5 lite": 16, "TPU v5e": 16, "TPU v5": 95, "TPU v5p": 95,
        "TPU v6 lite": 32, "TPU v6e": 32, "TPU7x": 96, "NVIDIA H100 80GB HBM3": 80, "NVIDIA H200": 141,
    }.items()
}  # fmt: skip

# TPU: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "System architecture" (chip specifications; link bandwidth is "inter-
# chip interconnect" there, 2,400, 1,600, 4,800 and 3,584 Gbit/s). The clocks are those at which the matrix units of a
# chip, 128 x 128 products of two operations a cycle, 8 on v4 and v5p, 4 on v5e and 16 on v6e, give its stated peak.
# GPU: NVIDIA's data sheets of H100 SXM and H200 SXM (bf16 without sparsity; NVLink 4).
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", MEMORY["TPU v4"], 275e12, 1228e9, 300e9, 1.05e9),
        Chip("v5e", MEMORY["TPU v5e"], 197e12, 819e9, 200e9, 1.5e9),
        Chip("v5p", MEMORY["TPU v5p"], 459e12, 2765e9, 600e9, 1.75e9),
        Chip("v6e", MEMORY["TPU v6e"], 918e12, 1640e9, 448e9, 1.75e9),
        Chip("h100", MEMORY["NVIDIA H100 80GB HBM3"], 989e12, 3350e9, 900e9),
        Chip("h200", MEMORY["NVIDIA H200"], 989e12, 4800e9, 900e9),
    )
}


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Returns whether this CPU has instructions for products of bfloat16 (AMX or AVX-512), as Linux says."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))
