"""What every section of the config schema has in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

_LEAST, _MOST = 1.1754943508222875e-38, 3.4028234663852886e38


class Section(BaseModel):
    """Frozen, and closed to unknown keys; the string under a field is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )

    @field_validator("*", mode="after")
    @classmethod
    def _fits(cls, value: Any) -> Any:
        """Refuses numbers that the float32 or 64-bit integer which computes with them cannot hold."""
        if (problem := _misfit(value)) is not None:
            raise ValueError(problem)
        return value


def _misfit(value: Any) -> str | None:
    if isinstance(value, dict):
        return next((problem for item in value.values() if (problem := _misfit(item)) is not None), None)
    if isinstance(value, float) and value != 0 and not _LEAST <= abs(value) <= _MOST:
        return (
            f"expected 0 or a number between {_LEAST:.1e} and {_MOST:.1e} in size, as float32 holds it; found {value}"
        )
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "expected an integer of at most 64 bits"
    return None
