"""Reads out of a compiled program's text what its cost analysis leaves out: communication, and the turns of loops."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
_BITS = {"pred": 8, "s4": 4, "u4": 4, "f4e2m1fn": 4, "token": 0, "bf16": 16, "c64": 64, "c128": 128}


ACROSS_SLICES = "across slices"
"""End of the kind of a collective over the network between TPU slices, such as `all-reduce across slices`."""


class Collective(NamedTuple):
    """One exchange of data between devices."""

    kind: str
    """One of `KINDS`, or one that ends in `ACROSS_SLICES`."""
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """(dtype, shape) of each array that one device receives: several where the compiler joined instructions."""
    group_size: int
    """Devices that take part together; 0 where the text does not say."""
    looped: bool
    """Within a loop, for instance over the layers."""
    times: int
    """How often it runs: the turns of the loops around it, counted once where the text does not say how many."""
    op_name: str
    """Where it comes from in the traced program, "" where the text does not say."""
    overlapped: bool = False
    """Started in one place and awaited in another, so that the device may compute meanwhile."""

    @property
    def bytes(self) -> int:
        """Of the result on one device, each time that it runs."""
        return sum(math.prod(shape) * bits(dtype) // 8 for dtype, shape in self.shapes)


def bits(dtype: str) -> int:
    """Size of one element of an HLO dtype, such as f32 or bf16."""
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.search(r"\d+", dtype)
    if found is None:
        raise ValueError(f"unknown HLO dtype {dtype!r}")
    return int(found.group())


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program (`compiled.as_text()`), in the order of the text.

    A pair of -start and -done counts once. The TPU compiler writes a collective that it overlaps with computing into
    several fusions, all with one channel id: a channel counts once. Groups of a single device send nothing, and are
    left out.
    """
    parts = dict(computations(text))
    turns = turns_of(parts)
    found: dict[tuple[str, str], Collective] = {}
    for name, lines in parts.items():
        for number, line in enumerate(lines):
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            looped, times = turns.get(name, (False, 1))
            kind, shapes, size, op_name = match["kind"], _results(match), _group_size(line), search(_OP_NAME, line)
            if kind == "recv":
                kind, size = _between_slices(line), 0
                if not kind:  # from the host
                    continue
            if name.startswith(_SCATTER) and kind == "all-reduce":
                kind, shapes = "reduce-scatter", _shapes(search(r"ROOT %?[\w.\-]+ = (\(.*?\)|\S+) ", "\n".join(lines)))
                op_name = search(rf"calls=%?{re.escape(name)}, .*{_OP_NAME}", text)
            if size == 1:
                continue
            overlapped = bool(match["start"]) or name.startswith(_OVERLAPPED) or match["kind"] == "recv"
            channel = (kind, search(r"channel_id=(\d+)", line) or f"{name}, line {number}")
            if (known := found.get(channel)) is not None:
                looped, times, overlapped = (
                    looped or known.looped,
                    max(times, known.times),
                    overlapped or known.overlapped,
                )
                op_name = known.op_name or op_name
            found[channel] = Collective(kind, shapes, size, looped, times, op_name, overlapped)
    return list(found.values())


def _results(match: re.Match[str]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What one device receives."""
    kind, shapes = match["kind"], _shapes(match["result"])
    if kind == "recv":
        return shapes[:1]  # (what is received, context, token)
    if not match["start"] or kind == "all-reduce":
        return shapes
    # (operands, results, context): a permutation's context is two numbers.
    return shapes[1:2] if kind == "collective-permute" else shapes[len(shapes) // 2 :]


def _between_slices(line: str) -> str:
    """The kind of an exchange over the network between slices; "" for one with the host."""
    if "xla_megascale_runtime" not in line:
        return ""
    kind = search(r'_xla_megascale_transfer_type="([A-Z_]+)"', line).lower().replace("_", "-") or "transfer"
    return f"{kind} {ACROSS_SLICES}"


class Kernel(NamedTuple):
    """One call of a Pallas kernel for TPUs."""

    name: str
    operands: tuple[tuple[str, tuple[int, ...]], ...]
    """(dtype, shape) of each."""
    times: int
    """How often it runs, as in `Collective`."""
    line: str
    """Its line of the text."""

    @property
    def bytes(self) -> int:
        """Of its operands and results."""
        arrays = *self.operands, *_shapes(search(r" = (.*?) custom-call\(", self.line))
        return sum(math.prod(shape) * bits(dtype) // 8 for dtype, shape in arrays)


def kernels(text: str) -> list[Kernel]:
    """Returns the calls of Pallas kernels in a program that the TPU compiler made."""
    parts = dict(computations(text))
    turns = turns_of(parts)
    return [
        Kernel(search(r"%?([\w\-]+?)[.\d]* = ", line), _shapes(search(_OPERANDS, line)), turns[name][1], line)
        for name, lines in parts.items()
        for line in lines
        if 'custom_call_target="tpu_custom_call"' in line
    ]


def cycles(text: str) -> int | None:
    """Sum of the TPU compiler's estimates for the instructions of one device, each as often as it runs.

    Collectives and kernels have none. Returns None for a text of another compiler.
    """
    parts = dict(computations(text))
    turns = turns_of(parts)
    total = 0
    for name, lines in parts.items():
        estimates = map(int, re.findall(r'"estimated_cycles":"(\d+)"', "\n".join(lines)))
        total += turns[name][1] * sum(each for each in estimates if each < UNKNOWN_CYCLES)
    return total or None


_OP_NAME = r'op_name="([^"]*)"'
_SCATTER = "all-reduce-scatter"  # the TPU compiler's reduce-scatter: a computation that adds up and cuts out
_OVERLAPPED = "async_collective_fusion"  # a part of a collective that the TPU compiler runs beside computation
_OPERANDS = r"operand_layout_constraints=\{((?:[^{}]|\{[^{}]*\})*)\}"
UNKNOWN_CYCLES = 2**62
"""What the compiler has no estimate for has more: it writes 2^63 - 1."""

_INSTRUCTION = re.compile(
    rf"\s*(?:ROOT )?%?[\w.\-]+ = (?P<result>\(.*?\)|\S+) (?P<kind>{'|'.join((*KINDS, 'recv'))})(?P<start>-start)?\("
)
_HEADER = re.compile(r"(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{\s*$")


def computations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the name and the lines of each computation."""
    name, lines = None, []
    for line in text.splitlines():
        if (header := _HEADER.match(line)) is not None:
            name, lines = header["name"], []
        elif line.rstrip() == "}" and name is not None:
            yield name, lines
            name = None
        elif name is not None:
            lines.append(line)


def turns_of(parts: dict[str, list[str]]) -> dict[str, tuple[bool, int]]:
    """Returns whether each computation runs in a loop, and how often: once for each turn of each loop around it."""
    callers: dict[str, list[tuple[str, bool, int]]] = {}
    for name, lines in parts.items():
        for line in lines:
            loop = " while(" in line
            turns = _trips(line, parts) if loop else 1
            for called in re.findall(_CALLED, line):
                for callee in re.findall(r"[\w.\-]+", called):
                    callers.setdefault(callee, []).append((name, loop, turns))
    known: dict[str, tuple[bool, int]] = {}

    def visit(name: str) -> tuple[bool, int]:
        if name not in known:
            outer = [(visit(caller), loop, turns) for caller, loop, turns in callers.get(name, ())]
            looped = any(within or loop for (within, _), loop, _ in outer)
            known[name] = (looped, sum(times * turns for (_, times), _, turns in outer) if outer else 1)
        return known[name]

    for name in parts:
        visit(name)
    return known


def _trips(line: str, parts: dict[str, list[str]]) -> int:
    """Turns of a `while`: what the compiler noted, else the one constant that its condition holds a counter below, as
    `lax.scan` counts from 0 (the TPU compiler notes nothing); 1 where that is not it."""
    if known := search(r'known_trip_count":\{"n":"(\d+)"', line):
        return int(known)
    condition = "\n".join(parts.get(search(r"condition=%?([\w.\-]+)", line), ()))
    for name in re.findall(r"calls=%?([\w.\-]+)", condition):
        condition += "\n" + "\n".join(parts.get(name, ()))
    bounds = set(re.findall(r"= [su]\d+\[\]\S* constant\((\d+)\)", condition))
    return int(bounds.pop()) if len(bounds) == 1 and "direction=LT" in condition else 1


_CALLED = r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"


def _shapes(result: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """f32[2,3]{1,0}, or a tuple of such, without scalars that are bookkeeping."""
    result = re.sub(r"/\*.*?\*/", "", result)
    arrays = re.findall(r"([a-z]\w*)\[([\d,]*)\]", result)
    return tuple((dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in arrays)


def _group_size(line: str) -> int:
    """Of replica_groups={{0,1},{2,3}}, [groups,size]<=[...], or mesh['a'=2,'b'=4], device_ids=(...) {'a'}, where an
    axis may be cut as in {'b':(2)2}; pairs of a permutation count as two."""
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*)? ?\{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    return 2 if "source_target_pairs=" in line else 0


def search(pattern: str, line: str) -> str:
    """Returns the first group of a pattern's first match; "" without one."""
    found = re.search(pattern, line)
    return found[1] if found else ""
