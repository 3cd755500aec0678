"""The tensors of a model under an adapter that PEFT wrote: read as those of one model, the adapter merged.

LoRA, with rsLoRA, DoRA and ranks of single modules, and IA3 (formulas: `nn.adapters`). PEFT keeps, of a module's weight
[outputs, inputs], A as [rank, inputs] and B as [outputs, rank]; with `fan_in_fan_out` the weight alone is transposed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.hf.adapter_export import CONFIG, PREFIX, WEIGHTS
from jaxlm.hf.tensors import Tensors
from jaxlm.local_paths import check_fetched

_PARTS = re.compile(r"^(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector|ia3_l)$")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of PEFT and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Returns adapter_config.json.

    Raises:
      UserError: not JSON, or an adapter of a kind that is not read.
    """
    path = folder / CONFIG
    check_fetched(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in ("LORA", "IA3"):
        raise UserError(
            f"{path}: peft_type {kind!r} is not read; expected LORA or IA3. Another can be merged with PEFT "
            "(merge_and_unload) and saved as a whole model"
        )
    return config


class _AdapterFile(Tensors):
    """The tensors of adapter_model.safetensors."""

    @cached_property
    def files(self) -> dict[str, Path]:
        path = self.directory / WEIGHTS
        if not path.is_file():
            raise UserError(f"{self.directory}: no {WEIGHTS}; adapters that would have to be unpickled are not read")
        with self._open(path) as tensors:
            return dict.fromkeys(tensors.keys(), path)


@dataclass(frozen=True)
class AdaptedTensors(Tensors):
    """Tensors of `directory`, the base, with the adapter of another folder merged into them.

    Attributes:
      canonical: spelling of a key -> that of the family's rules.
    """

    adapter: Path
    canonical: Callable[[str], str]

    @cached_property
    def _base(self) -> Tensors:
        return Tensors(self.directory)

    @cached_property
    def _file(self) -> Tensors:
        return _AdapterFile(self.adapter)

    @cached_property
    def _config(self) -> dict[str, Any]:
        return read_adapter_config(self.adapter)

    @cached_property
    def _contents(self) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """(canonical key of a weight -> part -> tensor of the adapter, canonical key -> tensor that replaces it)."""
        changes: dict[str, dict[str, str]] = {}
        saved: dict[str, str] = {}
        for key in self._file.files:
            name = key.removeprefix(PREFIX)
            if (found := _PARTS.match(name)) is not None:
                changes.setdefault(self.canonical(f"{found['module']}.weight"), {})[found["part"]] = key
            elif "lora_" in name or "ia3_" in name or not key.startswith(PREFIX):
                raise UserError(f"{self.adapter / WEIGHTS}: tensor {key}: adapters of such modules are not read")
            else:
                saved[self.canonical(name.replace(".base_layer.", ".").replace(".modules_to_save.", "."))] = key
        base = {self.canonical(key) for key in self._base.files}
        if lost := sorted(changes.keys() - base):
            raise UserError(
                f"{self.adapter}: adapts {lost[0].removesuffix('.weight')}, which {self.directory} does not have; name "
                "the model that it was made for in model.base"
            )
        return changes, saved

    @cached_property
    def files(self) -> dict[str, Path]:
        _, saved = self._contents
        own = {key: path for key, path in self._base.files.items() if self.canonical(key) not in saved}
        return own | {key: self._file.files[theirs] for key, theirs in saved.items()}

    @cached_property
    def _headers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        _, saved = self._contents
        theirs = {key: self._file._headers[name] for key, name in saved.items()}
        return {key: header for key, header in self._base._headers.items() if key in self.files} | theirs

    def read(self, key: str, part: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of a tensor as float32; of one with an adapter beside it, all of it."""
        changes, saved = self._contents
        if key in saved:
            return self._file.read(saved[key], part)
        canonical = self.canonical(key)
        weight = re.sub(r"\.bias$", ".weight", canonical)
        parts = {name: self._file.read(theirs, ()) for name, theirs in changes.get(weight, {}).items()}
        if not parts or (canonical != weight and "ia3_l" not in parts):
            return self._base.read(key, part)
        whole = self._base.read(key, ())
        try:
            changed = self._bias(whole, parts) if canonical != weight else self._weight(weight, whole, parts)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{self.adapter / WEIGHTS}: what stands there for {weight} does not fit its shape {whole.shape} in "
                f"{self.directory} ({error}); name the model that the adapter was made for in model.base"
            ) from error
        return np.asarray(changed[part] if part else changed, np.float32)

    @staticmethod
    def _bias(bias: np.ndarray, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        factors = parts["ia3_l"]
        return bias if factors.shape[0] == 1 else bias * factors[:, 0]

    def _weight(self, key: str, weight: np.ndarray, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        transposed = bool(self._config.get("fan_in_fan_out"))
        matrix = weight.T if transposed else weight  # [outputs, inputs]
        if "ia3_l" in parts:
            matrix = matrix * parts["ia3_l"]
        else:
            update = parts["lora_B.weight"] @ parts["lora_A.weight"]
            if update.shape != matrix.shape:
                raise ValueError(f"an update of shape {update.shape}")
            matrix = matrix + np.float32(self._scale(key, len(parts["lora_A.weight"]))) * update
            if "lora_magnitude_vector" in parts:
                matrix = matrix * (parts["lora_magnitude_vector"].ravel() / np.linalg.norm(matrix, axis=1))[:, None]
        return matrix.T if transposed else matrix

    def _scale(self, key: str, rank: int) -> float:
        """What PEFT multiplies B A by: alpha / rank, or alpha / sqrt(rank)."""
        module = key.removesuffix(".weight")
        patterns = self._config.get("alpha_pattern") or {}
        own = next((value for name, value in patterns.items() if re.match(rf"(.*\.)?({name})$", module)), None)
        alpha = self._config.get("lora_alpha", 8) if own is None else own
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)
