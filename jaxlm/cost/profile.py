"""Where the TPU compiler expects a step's time to go: its instructions with their cycles and source lines."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

from jaxlm.cost.flops import kernel_seconds
from jaxlm.cost.hlo import UNKNOWN_CYCLES, computations, kernels, search, turns_of
from jaxlm.parallel.chips import Chip

SHOWN = 20


class Instruction(NamedTuple):
    """All instructions of a program that come from one source line, do the same and have results of one shape."""

    operation: str
    """Its name in the traced program, after "remat" where it is computed again, and "backward" in a backward pass."""
    result: str
    """Dtype and shape, the first of several."""
    source: str
    """`file.py:line`, and the line that called it; "" where the text does not say."""
    times: int
    """How often it runs in a step."""
    cycles: float
    """Of one device in a step, in all."""


def instructions(text: str, chip: Chip) -> list[Instruction]:
    """Returns a compiled program's instructions that the compiler gives cycles, and kernels, the costliest first.

    A kernel has none: see `flops.kernel_seconds`.

    Args:
      text: of the whole program, `compiled.as_text()`.
      chip: one with a known clock.
    """
    parts = dict(computations(text))
    turns, sources = turns_of(parts), _sources(text)
    found: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0, 0.0])

    def add(line: str, times: int, cycles: float, operation: str) -> None:
        frame = int(search(r"stack_frame_id=(\d+)", line) or 0)
        entry = found[operation, search(r"([a-z]\w*\[[\d,]*\])", line), sources.get(frame, "")]
        entry[0] += times
        entry[1] += times * cycles

    for name, lines in parts.items():
        for line in lines:
            cycles = int(search(r'"estimated_cycles":"(\d+)"', line) or UNKNOWN_CYCLES)
            if cycles < UNKNOWN_CYCLES:
                add(line, turns[name][1], cycles, _operation(line))
    for kernel in kernels(text):
        cycles = kernel_seconds(kernel, chip) * (chip.clock or 0.0)
        add(kernel.line, kernel.times, cycles, kernel.name)
    made = [Instruction(*key, int(times), cycles) for key, (times, cycles) in found.items()]
    return sorted(made, key=lambda instruction: -instruction.cycles)


def profile_lines(found: Sequence[Instruction], chip: Chip) -> list[str]:
    """A table of the costliest instructions: share of all cycles, milliseconds, turns, result, source line."""
    total, clock = sum(instruction.cycles for instruction in found) or 1.0, chip.clock or 1.0
    first = found[:SHOWN]
    covered = sum(instruction.cycles for instruction in first) / total
    of_all = f"{len(first)} of {len(found)} instructions"
    lines = [
        f"profile          {of_all}, {covered:.0%} of {total / clock:.4f} s of computing",
        f"{'share':>6} {'ms':>8} {'times':>6}  {'result':26} {'source':44} operation",
    ]
    for instruction in first:
        share, milliseconds = instruction.cycles / total, 1000 * instruction.cycles / clock
        lines.append(
            f"{share:6.1%} {milliseconds:8.2f} {instruction.times:6}  {instruction.result:26} "
            f"{instruction.source:44} {instruction.operation}"
        )
    return lines


def _operation(line: str) -> str:
    """The last part of the name in the traced program; the compiler's own name for what it added."""
    name = search(r'op_name="([^"]*)"', line)
    if not name:
        return re.sub(r"[.\d]+$", "", search(r"%?([\w.\-]+) = ", line))
    marks = {"remat": "rematted", "backward": "transpose("}
    return " ".join([*(word for word, mark in marks.items() if mark in name), name.rsplit("/", 1)[-1]])


def _sources(text: str) -> dict[int, str]:
    """`file.py:line < caller.py:line` of each stack frame, from the tables at the head of the text."""
    files = {int(n): PurePath(path).name for n, path in re.findall(r'^(\d+) "([^"]+\.py)"$', text, re.MULTILINE)}
    places = {
        int(n): f"{files.get(int(file), '?')}:{line}"
        for n, file, line in re.findall(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", text, re.MULTILINE)
    }
    frames = {
        int(n): (int(place), int(parent) - 1)  # 0: none
        for n, place, parent in re.findall(r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)", text, re.MULTILINE)
    }

    def shown(frame: int) -> str:
        chain: list[str] = []
        while frame in frames and len(chain) < 2:
            place, frame = frames[frame]
            if (name := places.get(place, "?")) not in chain:
                chain.append(name)
        return " < ".join(chain)

    return {frame: shown(frame) for frame in frames}
