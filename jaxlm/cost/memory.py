"""What a compiled train step takes of one device's memory, as lines of a dry run's report."""

from __future__ import annotations

from typing import Any

from jaxlm.parallel.chips import GIB


def peak_bytes(analysis: Any) -> int:
    """Bytes that a program needs at once on one device.

    Args:
      analysis: `memory_analysis()` of a compiled program.
    """
    kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return kept + analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes


def state_lines(params: int, optimizer: int, *, offload: bool = False) -> list[str]:
    """Lines on what stays between steps, from bytes on one device."""
    on_host = ", the rest in host memory" if offload else ""
    return [
        f"parameters       {params / GIB:.3f} GiB per device",
        f"optimizer state  {optimizer / GIB:.3f} GiB per device{on_host}",
    ]


def step_lines(temporaries: int, peak: int) -> list[str]:
    """Lines on what a step takes, from bytes on one device."""
    return [
        f"temporaries      {temporaries / GIB:.3f} GiB per device (gradients and activations)",
        f"peak             {peak / GIB:.3f} GiB per device",
    ]
