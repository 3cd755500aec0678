"""Reading and writing HF-format checkpoints: config.json and safetensors, streamed parameter by parameter."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxlm.errors import UserError
from jaxlm.hf.shards import INDEX, WEIGHTS, write_tensors
from jaxlm.hf.transfer import Index, entries, on_host, place
from jaxlm.models import Family, Model, get_family
from jaxlm.models.base import Head, flatten
from jaxlm.models.weight_map import Plan, Rule, plan_import, rules_for

log = logging.getLogger("jaxlm")


@dataclass(frozen=True)
class HFCheckpoint:
    """An HF-format directory opened for reading. Tensors are read one by one; nothing is ever unpickled."""

    directory: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        path = self.directory / "config.json"
        if not path.is_file():
            raise UserError(f"{self.directory}: no config.json; expected an HF-format model directory")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{path}: not valid JSON: {error}") from error
        if not isinstance(config, dict) or "model_type" not in config:
            raise UserError(f"{path}: expected an object with a model_type")
        return config

    @cached_property
    def family(self) -> Family:
        return get_family(self.config["model_type"], str(self.directory / "config.json"))

    @property
    def model_config(self) -> Any:
        """The family's config object."""
        try:
            return self.family.from_hf(self.config)
        except UserError as error:
            raise UserError(f"{self.directory}: {error}") from error

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The head's label names in id order; None where it has no labels, or only the LABEL_0 placeholders."""
        names = self.config.get("id2label")
        if not names or self.head is None or not self.family.heads[self.head].label_params:
            return None
        ordered = tuple(name for _, name in sorted(((int(i), n) for i, n in names.items())))
        return None if ordered == tuple(f"LABEL_{i}" for i in range(len(ordered))) else ordered

    @property
    def head(self) -> str | None:
        """The kind of head that config.json names, a key of `Family.heads`; None for a bare trunk, say."""
        kinds = {head.architecture: kind for kind, head in self.family.heads.items()}
        return next((kinds[name] for name in self.config.get("architectures") or () if name in kinds), None)

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Tensor key -> file."""
        if (self.directory / INDEX).is_file():
            path = self.directory / INDEX
            try:
                weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
                raise UserError(f"{path}: expected JSON with a weight_map: {error!r}") from error
            for name in set(weight_map.values()):
                # An index from the open internet must not reach outside its directory.
                if Path(name).name != name or not (self.directory / name).is_file():
                    raise UserError(f"{path}: weight_map names {name!r}, which is not a file of this directory")
            return {key: self.directory / name for key, name in weight_map.items()}
        if (self.directory / WEIGHTS).is_file():
            with self._open(self.directory / WEIGHTS) as tensors:
                return dict.fromkeys(tensors.keys(), self.directory / WEIGHTS)
        pickled = sorted(p.name for p in self.directory.glob("*.bin"))
        if pickled:
            raise UserError(
                f"{self.directory}: only has {', '.join(pickled)}; jaxlm never unpickles. Convert once, where "
                f'torch and transformers are installed: python -c "from transformers import AutoModel; '
                f"AutoModel.from_pretrained('{self.directory}').save_pretrained('{self.directory}')\""
            )
        raise UserError(f"{self.directory}: no {WEIGHTS} (or {INDEX}); expected an HF-format model directory")

    def _open(self, path: Path) -> Any:
        try:
            return safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged or truncated safetensors file ({error}); fetch it again") from error

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor key -> shape, from the headers alone."""
        by_file: dict[Path, list[str]] = {}
        for key, path in self._files.items():
            by_file.setdefault(path, []).append(key)
        shapes = {}
        for path, keys in by_file.items():
            with self._open(path) as tensors:
                present = set(tensors.keys())
                for key in keys:
                    if key not in present:
                        raise UserError(f"{self.directory / INDEX}: {path.name} holds no tensor {key!r}")
                    shapes[key] = tuple(tensors.get_slice(key).get_shape())
        return shapes

    def read(self, key: str, part: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of a tensor as float32."""
        # Opened for each tensor: pages of a mapped file count as memory in use until it is closed.
        with self._open(self._files[key]) as tensors:
            try:
                whole = tensors.get_slice(key)
                return np.asarray(whole[part] if part else tensors.get_tensor(key), np.float32)
            except SafetensorError as error:
                raise UserError(f"{self.directory}: cannot read a tensor ({error}); fetch the file again") from error


@dataclass(frozen=True)
class LoadedParams:
    """The parameters of a model, and the names of what was not read."""

    params: Any
    initialized: tuple[str, ...]
    """Parameters that the checkpoint lacks (a new task head), drawn at random."""
    ignored: tuple[str, ...]
    """Checkpoint tensors of other heads, not used."""


def load_params(checkpoint: HFCheckpoint, model: Model, key: jax.Array, *, new_head: bool = False) -> LoadedParams:
    """Reads a checkpoint into a model's parameter tree, each array straight to its sharding.

    Args:
      key: PRNG key of the parameters that the checkpoint lacks.
      new_head: initialize the head's label parameters even where the checkpoint has them, as is done for those of
        another kind of head.
    Raises:
      UserError: a trunk parameter that the checkpoint lacks, a tensor that the family does not know, a wrong shape, or
        a head of another number of labels.
    """
    structs, head = flatten(model.shapes), model.family.heads[model.head]
    plan = plan_import(model.weight_map, {name: s.shape for name, s in structs.items()}, checkpoint.shapes)
    new_head = new_head or checkpoint.head not in (None, model.head)
    fresh = {name for name in structs if name in plan.missing or new_head and name in head.label_params}
    _check(checkpoint, head, plan, fresh)
    initialized = _init_some(model, fresh, key)

    def leaf(path: Any, struct: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in initialized:
            return initialized[name]
        rule, keys = plan.reads[name]
        return place(struct, lambda index: _read_part(checkpoint, rule, keys, struct.shape, index))

    params = jax.tree_util.tree_map_with_path(leaf, model.shapes)
    if fresh:
        log.info("initialized (not in %s): %s", checkpoint.directory, ", ".join(sorted(fresh)))
    if plan.ignored:
        log.info("not used from %s: %s", checkpoint.directory, ", ".join(sorted(plan.ignored)))
    return LoadedParams(params, tuple(sorted(fresh)), tuple(sorted(plan.ignored)))


def _check(checkpoint: HFCheckpoint, head: Head, plan: Plan, fresh: set[str]) -> None:
    where = checkpoint.directory
    own = checkpoint.family.trunk_map.is_not_exported
    lost = [name for name in plan.missing if not name.startswith("head/") and not own(name)]
    if lost:
        raise UserError(
            f"{where}: has no tensor for {', '.join(lost[:5])}{' ...' if len(lost) > 5 else ''}; config.json and "
            f"{WEIGHTS} do not belong together, or the file is incomplete"
        )
    if plan.unread:
        raise UserError(
            f"{where}: tensors that a {checkpoint.config['model_type']} model does not know: "
            f"{', '.join(plan.unread[:5])}{' ...' if len(plan.unread) > 5 else ''}; is it of another model_type?"
        )
    for name, (key, found, expected) in plan.mismatched.items():
        if name in fresh:
            continue
        if name in head.label_params:
            raise UserError(
                f"{where}: its head has {found[0]} labels ({key} is {found}), the task has {expected[0]}; name the "
                "checkpoint's labels in task.labels, or set model.new_head=true to train a new head"
            )
        raise UserError(f"{where}: tensor {key} has shape {found}, config.json means {expected}")


def _init_some(model: Model, names: set[str], key: jax.Array) -> dict[str, jax.Array]:
    """Initializes only the named parameters: jit drops the others before they exist."""
    if not names:
        return {}
    shardings = {name: s.sharding for name, s in flatten(model.shapes).items() if name in names}
    return jax.jit(
        lambda k: {name: value for name, value in flatten(model.init(k)).items() if name in names},
        out_shardings=shardings if model.compute.rules.mesh is not None else None,
    )(key)


def _read_part(
    checkpoint: HFCheckpoint, rule: Rule, keys: list[str], shape: tuple[int, ...], index: Index
) -> np.ndarray:
    """Reads a slice of a parameter as float32: from each layer's tensor, the part that the slice needs."""
    part, convert = rule.part(shape, index[1:] if rule.stacked else index)
    if not rule.stacked:
        return convert(checkpoint.read(keys[0], part))
    values = np.empty([stop - start for start, stop in index], np.float32)
    for value, key in zip(values, keys[slice(*index[0])], strict=True):
        value[...] = convert(checkpoint.read(key, part))
    return values


def export_model(
    directory: Path,
    model: Model,
    params: Any,
    task_config: Mapping[str, Any] | None = None,
    *,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes config.json and model.safetensors; Transformers loads the directory as it is.

    Every process has to call it; the first writes.

    Args:
      directory: made if absent; files of the same names are replaced.
      task_config: further config.json keys: id2label, label2id, problem_type.
      shard_bytes: a model of more is written as several files and an index, and never whole in memory.
    """
    flat = flatten(params)
    rules = rules_for(model.weight_map, flat)
    tensors = (tensor for rule in rules for tensor in _tensors(rule, flat[rule.param]))
    if jax.process_index():
        for _ in tensors:  # has a part in gathering them
            pass
        return
    sizes = {
        key: 4 * math.prod(rule.hf_shape(flat[rule.param].shape))
        for rule in rules
        for key in rule.keys(flat[rule.param].shape)
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory, sizes, tensors, shard_bytes)
    config = {
        "architectures": [model.family.heads[model.head].architecture],
        "model_type": model.family.name,
        **model.family.to_hf(model.config),
        "dtype": "float32",
        **(task_config or {}),
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tensors(rule: Rule, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a parameter's HF keys and tensors, layer by layer."""
    layers = entries(value) if rule.stacked else [on_host(value)]
    for key, layer in zip(rule.keys(value.shape), layers, strict=True):
        yield key, np.ascontiguousarray(rule.from_param(layer))
