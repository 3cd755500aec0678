"""The tensors of an HF-format directory: which file holds each, their shapes and types, and reading parts of them."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxlm.errors import UserError
from jaxlm.hf.shards import INDEX, WEIGHTS
from jaxlm.local_paths import check_fetched

log = logging.getLogger("jaxlm")

READABLE = ("F64", "F32", "F16", "BF16")
"""Types of tensors, as safetensors calls them, that are read as parameters."""


@dataclass(frozen=True)
class Tensors:
    """Tensors of a directory, read one by one; nothing is ever unpickled."""

    directory: Path

    @cached_property
    def files(self) -> dict[str, Path]:
        """Tensor key -> file. Beside a whole model.safetensors an index counts for nothing, as in Transformers."""
        whole, index = self.directory / WEIGHTS, self.directory / INDEX
        if whole.is_file():
            with self._open(whole) as tensors:
                files = dict.fromkeys(tensors.keys(), whole)
            if index.is_file():
                log.warning("%s: holds %s and %s; the first is read, the index is not", self.directory, WEIGHTS, INDEX)
            return files
        if index.is_file():
            return {key: self.directory / name for key, name in self._weight_map(index).items()}
        pickled = sorted(p.name for p in self.directory.glob("*.bin"))
        if pickled:
            raise UserError(
                f"{self.directory}: only has {', '.join(pickled)}; jaxlm never unpickles. Convert once, where "
                f'torch and transformers are installed: python -c "from transformers import AutoModel; '
                f"AutoModel.from_pretrained('{self.directory}').save_pretrained('{self.directory}')\""
            )
        raise UserError(f"{self.directory}: no {WEIGHTS} (or {INDEX}); expected an HF-format model directory")

    def _weight_map(self, path: Path) -> dict[str, str]:
        try:
            weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            if not isinstance(weight_map, dict) or not weight_map:
                raise TypeError(f"weight_map is {weight_map!r:.60}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: expected JSON with a weight_map, tensor -> file: {error!r:.200}") from error
        for name in {repr(name): name for name in weight_map.values()}.values():
            # An index from the open internet must not reach outside its directory.
            if not isinstance(name, str) or Path(name).name != name or not (self.directory / name).is_file():
                raise UserError(f"{path}: weight_map names {name!r:.200}, which is not a file of this directory")
        return weight_map

    def _open(self, path: Path) -> Any:
        check_fetched(path)
        try:
            return safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged or truncated safetensors file ({error}); fetch it again") from error

    @cached_property
    def _headers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Tensor key -> shape and type."""
        by_file: dict[Path, list[str]] = {}
        for key, path in self.files.items():
            by_file.setdefault(path, []).append(key)
        headers = {}
        for path, keys in by_file.items():
            with self._open(path) as tensors:
                present = set(tensors.keys())
                for key in keys:
                    if key not in present:
                        raise UserError(f"{self.directory / INDEX}: {path.name} holds no tensor {key!r}")
                    header = tensors.get_slice(key)
                    headers[key] = tuple(header.get_shape()), str(header.get_dtype())
        return headers

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor key -> shape, from the headers alone."""
        return {key: shape for key, (shape, _) in self._headers.items()}

    def check_readable(self, key: str) -> None:
        """Raises UserError where a tensor's type is none of a parameter's: quantized, integer, boolean, complex."""
        kind = self._headers[key][1]
        if kind not in READABLE:
            raise UserError(
                f"{self.files[key]}: tensor {key} is of type {kind}; expected {', '.join(READABLE)}. Save the model "
                "unquantized"
            )

    def read(self, key: str, part: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of a tensor as float32."""
        # Opened for each tensor: pages of a mapped file count as memory in use until it is closed.
        with self._open(self.files[key]) as tensors:
            try:
                whole = tensors.get_slice(key)
                return np.asarray(whole[part] if part else tensors.get_tensor(key), np.float32)
            except (SafetensorError, TypeError, ValueError) as error:
                raise UserError(f"{self.directory}: cannot read a tensor ({error}); fetch the file again") from error
