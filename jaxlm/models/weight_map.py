"""Two-way weight maps: declarative rules from parameter paths to HF checkpoint keys.

A `Rule` names a parameter, the HF key and the einops pattern that turns the HF tensor into the parameter; swapping the
pattern's sides gives the export. `{i}` in the key stacks layers along the parameter's first axis.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from einops import rearrange

from jaxlm.errors import UserError

Buffer = Callable[[np.ndarray, Any], bool]
"""(values, config) -> whether a constant of a checkpoint is what the network computes with."""


@dataclass(frozen=True)
class Rule:
    param: str
    """Parameter path, "trunk/layers/q"."""
    key: str
    """HF key, "bert.encoder.layer.{i}.attention.self.query.weight"; `{i}` is the layer."""
    pattern: str = ""
    """einops pattern HF -> parameter of one layer, "(n h) d -> d n h"; empty: the same shape. A 1 on the left
    is a dimension of that size that the parameter lacks."""
    layer_offset: int = 0
    """What `{i}` counts from, where earlier layers are parameters of their own."""
    fallback_key: str = ""
    """Key that is read where `key` is absent: a tensor that the checkpoint's model had tied this one to."""
    twin: str = ""
    """Key under which exports hold the tensor a second time, for a parameter that Transformers has and never reads."""

    @property
    def stacked(self) -> bool:
        return "{i}" in self.key

    def keys(self, shape: Sequence[int]) -> list[str]:
        """Returns the HF keys that this rule reads or writes for a parameter of this (stacked) shape."""
        return (
            [self.key.replace("{i}", str(self.layer_offset + i)) for i in range(shape[0])]
            if self.stacked
            else [self.key]
        )

    def hf_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of each HF tensor, from the (stacked) parameter's shape."""
        inner = tuple(shape[1:] if self.stacked else shape)
        if not self.pattern:
            return inner
        sizes = {"1": 1, **dict(zip(self._names, inner, strict=True))}
        return tuple(math.prod(sizes[name] for name in group) for group in self._groups)

    @property
    def dimensions(self) -> tuple[list[str], list[list[str]]]:
        """The names of the dimensions of a kernel of one layer, and those that each of HF's two is made of."""
        if not self.pattern:
            return ["inputs", "outputs"], [["inputs"], ["outputs"]]
        return self._names, self._groups

    @property
    def _names(self) -> list[str]:
        """The names of the parameter's dimensions in the pattern."""
        return self.pattern.split("->")[1].split()

    @property
    def _groups(self) -> list[list[str]]:
        """The names that each dimension of the HF tensor is made of."""
        groups = re.findall(r"\(([^)]*)\)|(\S+)", self.pattern.split("->")[0])
        return [(group or name).split() for group, name in groups]

    def to_param(self, tensor: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Converts one layer's HF tensor to the parameter; `shape` is the (stacked) parameter's."""
        if not self.pattern:
            return tensor
        inner = shape[1:] if self.stacked else shape
        return rearrange(tensor, self.pattern, **dict(zip(self._names, inner, strict=True)))

    def part(
        self, shape: Sequence[int], index: Sequence[tuple[int, int]]
    ) -> tuple[tuple[slice, ...], Callable[[np.ndarray], np.ndarray]]:
        """Returns the slices of one layer's HF tensor that a part of the parameter needs, and what converts them.

        Args:
          shape: the (stacked) parameter's.
          index: start and stop in each dimension of one layer.
        """
        if not self.pattern:
            return tuple(slice(*bounds) for bounds in index), lambda tensor: tensor
        full = {"1": 1, **dict(zip(self._names, shape[1:] if self.stacked else shape, strict=True))}
        wanted = {"1": (0, 1), **dict(zip(self._names, index, strict=True))}
        read, slices = dict(full), []
        for first, *rest in self._groups:
            start, stop = 0, full[first]
            # A range of a dimension made of several is one piece if only the outermost is cut; else all of it is read.
            if all(wanted[name] == (0, full[name]) for name in rest):
                start, stop = wanted[first]
                wanted[first], read[first] = (0, stop - start), stop - start
            inner = math.prod(full[name] for name in rest)
            slices.append(slice(start * inner, stop * inner))
        sizes = [read[name] for name in self._names]
        cut = tuple(slice(*wanted[name]) for name in self._names)
        return tuple(slices), lambda tensor: self.to_param(tensor, [1, *sizes] if self.stacked else sizes)[cut]

    def from_param(self, value: np.ndarray) -> np.ndarray:
        """Converts one layer's parameter to the HF tensor."""
        if not self.pattern:
            return value
        left, right = self.pattern.split("->")
        return np.ascontiguousarray(rearrange(value, f"{right} -> {left}"))


@dataclass(frozen=True)
class WeightMap:
    """Rules of a model's parameters, and the keys of its checkpoints that no parameter needs."""

    rules: tuple[Rule, ...]
    prefix: str
    """Key prefix of the trunk ("bert."); checkpoints of the bare trunk lack it."""
    ignore: tuple[str, ...] = ()
    """Regular expressions of keys that belong to other heads, or that no network reads."""
    copies: tuple[tuple[str, str], ...] = ()
    """(key, key that it is tied to): a file may hold both, with equal values, or either."""
    buffers: tuple[tuple[str, Buffer], ...] = ()
    """(regular expression, check) of keys that hold constants: the check says of values, float32, and config whether
    they are what the network computes with anyway."""
    constants: tuple[tuple[str, Callable[[Any], np.ndarray]], ...] = ()
    """(key, config -> float32 values) of buffers that exports hold for Transformers."""
    aliases: tuple[tuple[str, str], ...] = ()
    """(regular expression, replacement) from older key spellings to today's."""
    not_exported: tuple[str, ...] = ()
    """Regular expressions of parameters that no HF checkpoint holds: never written, initialized when importing."""

    def is_not_exported(self, param: str) -> bool:
        """Returns True for a parameter that no HF checkpoint holds."""
        return any(re.search(pattern, param) for pattern in self.not_exported)

    def canonical(self, key: str) -> str:
        """Returns today's spelling of a checkpoint key, with the trunk's prefix where only that makes it known."""
        for old, new in self.aliases:
            key = re.sub(old, new, key)
        known = self._known
        return key if known(key) or not known(self.prefix + key) else self.prefix + key

    @cached_property
    def _known(self) -> Callable[[str], Any]:
        """Whether any rule or pattern of the map has a key."""
        keys = {key for rule in self.rules for key in (rule.key, rule.twin, rule.fallback_key) if key}
        keys |= {key for pair in self.copies for key in pair}
        exact = [re.escape(key).replace(re.escape("{i}"), r"\d+") for key in keys]
        patterns = [rf"^(?:{'|'.join(exact)})$", *self.ignore, *(pattern for pattern, _ in self.buffers)]
        return re.compile("|".join(f"(?:{pattern})" for pattern in patterns)).search


@dataclass(frozen=True)
class Plan:
    """Which tensors an import reads: every parameter is read or initialized, every key read or ignored."""

    reads: dict[str, tuple[Rule, list[str]]]
    """Parameter path -> its rule and the checkpoint's own spelling of each key, in layer order."""
    missing: list[str]
    """Parameters without a tensor in the checkpoint."""
    ignored: list[str]
    """Checkpoint keys that no parameter needs."""
    mismatched: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Parameter path -> (key, shape found, shape expected)."""
    unread: list[str] = field(default_factory=list)
    """Checkpoint keys that the weight map does not know."""
    copies: list[tuple[str, str]] = field(default_factory=list)
    """Of `ignored`: (key, key whose values it must have)."""
    buffers: list[tuple[str, Buffer]] = field(default_factory=list)
    """Of `ignored`: (key, check of its values)."""


def plan_import(
    weight_map: WeightMap, params: Mapping[str, Sequence[int]], tensors: Mapping[str, Sequence[int]]
) -> Plan:
    """Matches a checkpoint's tensors with a model's parameters.

    Args:
      params: parameter path -> shape.
      tensors: checkpoint key -> shape.
    Raises:
      UserError: two checkpoint keys that mean the same.
    """
    spelled: dict[str, str] = {}
    for key in tensors:
        canonical = weight_map.canonical(key)
        if canonical in spelled:
            raise UserError(
                f"tensors {spelled[canonical]!r} and {key!r} both mean {canonical!r}; remove the one that is not meant"
            )
        spelled[canonical] = key
    rules = rules_for(weight_map, params)
    wanted = {rule.key for rule in rules}
    copies = [pair for pair in weight_map.copies if pair[0] not in wanted]
    # What is tied may be there under either name.
    other_name = {source: copy for copy, source in copies if copy in spelled and source not in spelled}

    reads, mismatched = {}, {}
    missing = [name for name in params if weight_map.is_not_exported(name)]
    used: set[str] = set()
    for rule in rules:
        shape = params[rule.param]
        keys = [other_name.get(key, key) for key in rule.keys(shape)]
        if rule.fallback_key in spelled and keys[0] not in spelled:
            keys = [rule.fallback_key]
        if not all(key in spelled for key in keys):
            missing.append(rule.param)
            continue
        used.update(keys)
        expected = rule.hf_shape(shape)
        wrong = [(spelled[k], tuple(tensors[spelled[k]])) for k in keys if tuple(tensors[spelled[k]]) != expected]
        if wrong:
            mismatched[rule.param] = (*wrong[0], expected)
        reads[rule.param] = (rule, [spelled[key] for key in keys])
    rest = [key for key in spelled if key not in used]
    sources = {copy: other_name.get(source, source) for copy, source in copies}
    ties = {copy: source for copy, source in sources.items() if copy in rest and source != copy and source in used}
    checks = {key: check for key in rest for pattern, check in weight_map.buffers if re.search(pattern, key)}
    ignored = {key for key in rest if any(re.search(pattern, key) for pattern in weight_map.ignore)}
    ignored |= ties.keys() | checks.keys()
    return Plan(
        reads,
        missing,
        [spelled[key] for key in rest if key in ignored],
        mismatched,
        [spelled[key] for key in rest if key not in ignored],
        [(spelled[copy], spelled[source]) for copy, source in ties.items()],
        [(spelled[key], check) for key, check in checks.items()],
    )


def rules_for(weight_map: WeightMap, params: Iterable[str]) -> list[Rule]:
    """Returns the rules of a model's parameters, without those that HF checkpoints do not hold.

    Raises:
      ValueError: a parameter without a rule, or with two (a mistake in the family's weight map).
    """
    names = [name for name in params if not weight_map.is_not_exported(name)]
    by_param: dict[str, Rule] = {}
    for rule in weight_map.rules:
        if rule.param in by_param:
            raise ValueError(f"weight map: parameter {rule.param!r} has two rules")
        by_param[rule.param] = rule
    lost = [name for name in names if name not in by_param]
    if lost:
        raise ValueError(f"weight map: no rule for parameter {', '.join(lost)}")
    return [by_param[name] for name in names]
