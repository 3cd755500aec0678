"""What a run remembers beside its training state: its best score, its patience, and sums since the last log line.

All of it is saved in checkpoints as JSON, so that a resumed run stops, logs and chooses like an undisturbed one.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np

from jaxlm.config.training import EarlyStoppingConfig
from jaxlm.fields import EXAMPLES, Batch
from jaxlm.metrics.best import rank
from jaxlm.parallel.placement import sum_over_processes
from jaxlm.parallel.sharding import Rules

IN_FLIGHT = 2
"""Steps by which the device may be ahead of the host: enough to hide the loader, few enough to stop promptly."""


@dataclass
class BestCheckpoint:
    """The best evaluation so far, and the patience of early stopping."""

    higher_is_better: bool
    value: float | None = None
    step: int = 0
    evaluations_since: int = 0
    """Evaluations since the last one that improved by more than `EarlyStoppingConfig.min_delta`."""
    stopped: bool = False
    """Whether early stopping has ended the run."""
    undefined: bool = False
    """Whether an evaluation did not define the metric."""

    def update(self, step: int, value: float | None, rule: EarlyStoppingConfig | None) -> bool:
        """Takes in an evaluation; returns whether it is the best.

        An infinite value never is; an undefined one (None, NaN) says nothing, and costs no patience.
        """
        if value is None or math.isnan(value):
            self.undefined = True
            return False
        new, old = (rank(v, higher_is_better=self.higher_is_better) for v in (value, self.value))
        gain = new - old  # NaN where neither value is finite
        if best := gain > 0:
            self.value, self.step = value, step
        self.evaluations_since = 0 if gain > (rule.min_delta if rule else 0.0) else self.evaluations_since + 1
        self.stopped = rule is not None and self.evaluations_since >= rule.patience
        return best


@dataclass
class StepMeter:
    """Measures training steps: losses, gradient norms, counts and time, since the last log line and in all.

    Around each step: `with meter.time_step(batch)`, and in it `add` for the step's metrics. They stay on the device
    until `wait`, or until more than `IN_FLIGHT` steps are under way, so that the host need not wait for each step.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    tokens: int = 0
    cells: int = 0
    """Tokens and padding."""
    examples: int = 0
    seconds: float = 0.0
    """Spent in steps that compiled nothing, without evaluation and saving."""
    compile_seconds: float = 0.0
    """Spent in the first step of each batch shape, which compiles, or finds the program in the cache."""
    timed_tokens: int = 0
    """Tokens of the steps that `seconds` covers."""
    timed_examples: int = 0
    total: dict[str, float] = field(default_factory=dict)
    """Sums of the above until the last log line."""

    _TOTALS: ClassVar[tuple[str, ...]] = (
        "tokens", "cells", "examples", "seconds", "timed_tokens", "timed_examples", "compile_seconds",
    )  # fmt: skip

    def __post_init__(self) -> None:
        self.clock: Callable[[], float] = time.perf_counter
        self._in_flight: deque[dict[str, jax.Array]] = deque()
        self._counts: Counter[str] = Counter()  # of this process, since the last `sum_counts`
        self._compiled: set[tuple[int, ...]] = set()  # shapes of batches
        self.last_compile_seconds = 0.0
        self._max_in_flight = 0
        self._nonfinite = 0.0  # parameters, after the steps that were fetched
        self._examples: list[np.ndarray | None] = []  # of each batch since the last flush, or resumption

    @contextmanager
    def time_step(self, batch: Batch) -> Generator[None, None, None]:
        """Times the block, a training step on `batch`, unless it is the first of the batch's shape, which compiles."""
        shape = batch["tokens"].shape
        compiled = shape in self._compiled
        self._max_in_flight = IN_FLIGHT if compiled else 0
        start = self.clock()
        yield
        seconds = self.clock() - start
        if compiled:
            self.seconds += seconds
        else:
            self.last_compile_seconds = seconds
            self.compile_seconds += seconds
        self._compiled.add(shape)
        self._examples.append(batch.get(EXAMPLES))
        self._counts.update(_count(batch, timed=compiled))

    def compiles(self, batch: Batch) -> bool:
        """Returns whether a step on `batch` is the first of its shape."""
        return batch["tokens"].shape not in self._compiled

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """Takes in the metrics of a step; waits for earlier steps if too many are in flight."""
        self._in_flight.append({name: metrics[name] for name in ("loss", "grad_norm", "nonfinite")})
        self._fetch(self._max_in_flight)

    def wait(self) -> None:
        """Waits for all steps in flight."""
        self._fetch(0)

    def _fetch(self, limit: int) -> None:
        while len(self._in_flight) > limit:
            done = jax.device_get(self._in_flight.popleft())
            self.losses.append(float(done["loss"]))
            self.norms.append(float(done["grad_norm"]))
            self._nonfinite += float(done["nonfinite"])

    def sum_counts(self, rules: Rules) -> None:
        """Adds the counts of all processes since the last call; all processes have to call it."""
        for name, count in sum_over_processes(self._counts, rules).items():
            setattr(self, name, getattr(self, name) + count)
        self._counts.clear()

    def flush(self, learning_rate: float) -> dict[str, float]:
        """Returns the averages since the last flush, the values of a log line, and starts new ones."""
        values = {
            "loss": sum(self.losses) / len(self.losses),
            "learning_rate": learning_rate,
            "grad_norm": sum(self.norms) / len(self.norms),
            "padding_share": 1.0 - self.tokens / max(self.cells, 1),
        }
        if self.seconds > 0:
            values["tokens_per_s"] = self.timed_tokens / self.seconds
            values["examples_per_s"] = self.timed_examples / self.seconds
        for name in self._TOTALS:
            self.total[name] = self.total.get(name, 0) + getattr(self, name)
            setattr(self, name, 0)
        self.losses, self.norms = [], []
        self._examples.clear()
        return values

    def divergence(self) -> str | None:
        """Returns what is not finite since the last flush, None if all is; asked before each save."""
        for name, values in (("loss", self.losses), ("gradient norm", self.norms)):
            if not all(map(math.isfinite, values)):
                return f"the {name} is not finite"
        return f"{self._nonfinite:,.0f} parameters are not finite" if self._nonfinite else None

    def culprit(self) -> tuple[int, np.ndarray | None]:
        """Returns how many steps before the last one `divergence` began, and what the batch of that step has as
        `EXAMPLES`; None where that is not known: of a corpus, of parameters, of a step before a resumption."""
        firsts = [
            next((i for i, value in enumerate(values) if not math.isfinite(value)), len(values))
            for values in (self.losses, self.norms)
        ]
        fetched = len(self.losses) - min(firsts)
        if not fetched:
            return 0, None
        ago = len(self._in_flight) + fetched - 1
        return ago, self._examples[-1 - ago] if ago < len(self._examples) else None

    def throughput(self) -> dict[str, float]:
        """Returns figures of the whole run: its padding and, unless every step compiled, its speed."""
        sums = {name: self.total.get(name, 0) + getattr(self, name) for name in self._TOTALS}
        seconds = sums["seconds"]
        speed = {name: sums[f"timed_{name}"] / seconds for name in ("tokens", "examples") if seconds}
        return {
            **{f"{name}_per_s": value for name, value in speed.items()},
            "padding_share": 1.0 - sums["tokens"] / max(sums["cells"], 1),
            "examples": sums["examples"],
            "train_seconds": seconds,
            "compile_seconds": sums["compile_seconds"],
        }


@dataclass
class Progress:
    """How far a run is, beside its training state."""

    best: BestCheckpoint
    meter: StepMeter = field(default_factory=StepMeter)
    step: int = 0
    """Steps done, as in `TrainState.step`, which lies on the device."""

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` needs beside the step."""
        return {"best": asdict(self.best), "meter": asdict(self.meter)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], step: int) -> Progress:
        return cls(BestCheckpoint(**value["best"]), StepMeter(**value["meter"]), step)


def _count(batch: Batch, *, timed: bool) -> dict[str, int]:
    """Returns tokens, examples and cells of this process's rows, by the names of a `StepMeter`'s fields."""
    segments = [value for key, value in batch.items() if key.endswith("segment_ids")]  # of each stream
    tokens = sum(int((value > 0).sum()) for value in segments)
    whole_rows = (batch["segment_ids"] > 0).any(-1)  # in pretraining, a row is an example
    examples = int((batch[EXAMPLES] >= 0).sum() if EXAMPLES in batch else whole_rows.sum())
    counts = {"tokens": tokens, "examples": examples, "cells": sum(math.prod(value.shape) for value in segments)}
    return counts | {"timed_tokens": tokens * timed, "timed_examples": examples * timed}
