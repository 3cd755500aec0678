"""Reading and writing HF-format checkpoints: config.json and safetensors, streamed parameter by parameter."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.data.label_names import check_distinct
from jaxlm.data.sentence_modules import KEY as SENTENCE
from jaxlm.data.sentence_modules import has_sentence_modules, read_sentence_modules
from jaxlm.errors import UserError
from jaxlm.hf.adapted_tensors import AdaptedTensors, read_adapter_config
from jaxlm.hf.adapter_export import TASK_TYPES
from jaxlm.hf.generation_config import FILE as GENERATION
from jaxlm.hf.generation_config import read_generation_config
from jaxlm.hf.redundant import check_redundant
from jaxlm.hf.shards import WEIGHTS, write_tensors
from jaxlm.hf.tensors import Tensors
from jaxlm.hf.transfer import Index, entries, on_host, place
from jaxlm.local_paths import check_fetched
from jaxlm.models import Family, Model, get_family
from jaxlm.models.base import Head, flatten
from jaxlm.models.weight_map import Plan, Rule, plan_import, rules_for

log = logging.getLogger("jaxlm")

EMBEDDING = "embedding"
"""The kind of head that a bare trunk's class has; only a sentence-transformers folder says that vectors are meant."""


def _instead(folder: Path) -> str:
    """What a folder without a config.json may be."""
    if (folder / "adapter_config.json").is_file():
        return "; this one holds an adapter of PEFT: it is read as model.init"
    if any(folder.glob("*.gguf")):
        return "; GGUF files are not read: take the model's safetensors"
    inner = min(folder.glob("*/config.json"), default=None)
    return "" if inner is None else f"; did you mean {inner.parent}?"


@dataclass(frozen=True)
class HFCheckpoint:
    """An HF-format directory opened for reading. Tensors are read one by one; nothing is ever unpickled."""

    directory: Path
    adapter: Path | None = None
    """Folder of an adapter of PEFT, which is merged into the model as it is read."""

    @cached_property
    def config(self) -> dict[str, Any]:
        path = self.directory / "config.json"
        if not path.is_file():
            raise UserError(
                f"{self.directory}: no config.json; expected an HF-format model directory{_instead(self.directory)}"
            )
        check_fetched(path)
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON: {error}") from error
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise UserError(f"{path}: expected an object with a model_type")
        named = config.get("architectures")
        if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
            raise UserError(f"{path}: architectures: expected a list of class names, found {named!r:.60}")
        if config.get("quantization_config"):
            raise UserError(f"{path}: quantization_config: quantized weights are not supported; save them unquantized")
        return config | self._generation_ids() | self._adapted_head(config)

    def _adapted_head(self, config: dict[str, Any]) -> dict[str, Any]:
        """Keys of config.json that name the head which an adapter brings, where it brings one."""
        if self.adapter is None:
            return {}
        task = read_adapter_config(self.adapter).get("task_type")
        family = get_family(config["model_type"], str(self.directory / "config.json"))
        kind = next((kind for kind, name in TASK_TYPES.items() if name == task and kind in family.heads), None)
        if kind is None or not family.heads[kind].label_params:
            return {}
        shapes = self._tensors_of(family).shapes
        out = next(rule for rule in family.heads[kind].rules if rule.param == "head/out")
        if out.key not in shapes:
            return {}
        labels = [f"LABEL_{i}" for i in range(shapes[out.key][0])]
        named = config.get("id2label")
        known = named if isinstance(named, dict) and len(named) == len(labels) else dict(enumerate(labels))
        return {
            "architectures": [family.heads[kind].architecture],
            "id2label": {str(i): label for i, label in known.items()},
            "label2id": {label: int(i) for i, label in known.items()},
        }

    def _generation_ids(self) -> dict[str, Any]:
        """The ids that begin and end a text by generation_config.json, which goes before config.json."""
        if not (self.directory / GENERATION).is_file():
            return {}
        said = read_generation_config(self.directory)
        return {name: said[name] for name in ("eos_token_id", "decoder_start_token_id") if name in said}

    @cached_property
    def family(self) -> Family:
        return get_family(self.config["model_type"], str(self.directory / "config.json"))

    @property
    def model_config(self) -> Any:
        """The family's config object."""
        family, config = self.family, self.config
        try:
            return family.from_hf(config)
        except UserError as error:
            raise UserError(f"{self.directory}: {error}") from error
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            reason = f"{family.name} model ({type(error).__name__}: {error})"
            raise UserError(f"{self.directory}: config.json is not that of a {reason}") from error

    @property
    def head(self) -> str | None:
        """The kind of head that config.json names, a key of `Family.heads`; None for a bare trunk, say.

        What sentence-transformers wrote gives vectors, whatever config.json names.
        """
        if has_sentence_modules(self.directory) and not self._adapted_head(self.config):
            return EMBEDDING
        kinds = {head.architecture: kind for kind, head in self.family.heads.items() if kind != EMBEDDING}
        return next((kinds[name] for name in self.config.get("architectures") or () if name in kinds), None)

    @property
    def head_config(self) -> dict[str, Any]:
        """config.json, and what other files say of the head.

        Raises:
          UserError: sentence-transformers modules that are not supported.
        """
        if self.head != EMBEDDING:
            return self.config
        return {**self.config, SENTENCE: read_sentence_modules(self.directory)}

    @cached_property
    def tensors(self) -> Tensors:
        """What model.safetensors or its shards hold."""
        return Tensors(self.directory) if self.adapter is None else self._tensors_of(self.family)

    def _tensors_of(self, family: Family) -> Tensors:
        """What an adapter makes of the model's tensors."""
        assert self.adapter is not None
        known = family.weight_map(next(iter(family.heads)))  # the keys of all heads, too
        return AdaptedTensors(self.directory, self.adapter, known.canonical)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor key -> shape, from the headers alone."""
        return self.tensors.shapes


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
    plan = plan_checkpoint(checkpoint, model)
    new_head = new_head or checkpoint.head not in (None, model.head)
    fresh = {name for name in structs if name in plan.missing or new_head and name in head.label_params}
    _check(checkpoint, head, plan, fresh)
    for name in structs.keys() - fresh:
        for tensor in plan.reads[name][1]:
            checkpoint.tensors.check_readable(tensor)
    check_redundant(checkpoint.tensors, plan, model.config)
    initialized = _init_some(model, fresh, key)

    def leaf(path: Any, struct: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in initialized:
            return initialized[name]
        rule, keys = plan.reads[name]
        return place(struct, lambda index: _read_part(checkpoint, rule, keys, struct.shape, index))

    params = jax.tree_util.tree_map_with_path(leaf, model.shapes)
    if fresh:
        named = checkpoint.head == model.head and not new_head and any(name.startswith("head/") for name in fresh)
        level = logging.WARNING if named else logging.INFO  # config.json names a head that the files lack
        log.log(level, "initialized (not in %s): %s", checkpoint.directory, ", ".join(sorted(fresh)))
    if plan.ignored:
        log.info("not used from %s: %s", checkpoint.directory, ", ".join(sorted(plan.ignored)))
    return LoadedParams(params, tuple(sorted(fresh)), tuple(sorted(plan.ignored)))


def plan_checkpoint(checkpoint: HFCheckpoint, model: Model) -> Plan:
    """Returns which of the checkpoint's tensors a model's parameters are read from.

    Raises:
      UserError: two tensors that mean the same.
    """
    shapes = {name: struct.shape for name, struct in flatten(model.shapes).items()}
    try:
        return plan_import(model.weight_map, shapes, checkpoint.shapes)
    except UserError as error:
        raise UserError(f"{checkpoint.directory}: {error}") from error


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
        return convert(checkpoint.tensors.read(keys[0], part))
    values = np.empty([stop - start for start, stop in index], np.float32)
    for value, key in zip(values, keys[slice(*index[0])], strict=True):
        value[...] = convert(checkpoint.tensors.read(key, part))
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
    Raises:
      UserError: two labels of one name.
    """
    check_distinct(tuple((task_config or {}).get("id2label", {}).values()), "the exported config.json: id2label")
    flat = flatten(params)
    rules = rules_for(model.weight_map, flat)
    constants = {key: values(model.config) for key, values in model.weight_map.constants}
    tensors = chain(constants.items(), (tensor for rule in rules for tensor in _tensors(rule, flat[rule.param])))
    if jax.process_index():
        for _ in tensors:  # has a part in gathering them
            pass
        return
    sizes = {key: values.nbytes for key, values in constants.items()} | {
        key: 4 * math.prod(rule.hf_shape(flat[rule.param].shape))
        for rule in rules
        for key in _written(rule, flat[rule.param].shape)
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
        tensor = np.ascontiguousarray(rule.from_param(layer))
        yield key, tensor
        if rule.twin:
            yield rule.twin, tensor.copy()


def _written(rule: Rule, shape: Sequence[int]) -> list[str]:
    """The keys of an export that a parameter fills."""
    return [*rule.keys(shape), *([rule.twin] if rule.twin else [])]
