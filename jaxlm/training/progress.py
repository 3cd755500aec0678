"""What a run remembers beside its parameters: the best score so far, patience, the running averages of its log.

All of it is part of the checkpoint (as JSON), so that a resumed run stops, logs and chooses as an undisturbed one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from jaxlm.config.training import EarlyStoppingConfig
from jaxlm.errors import RunFailure


@dataclass
class BestCheckpoint:
    """The best evaluation so far, and how many came after it without improvement."""

    higher_is_better: bool
    value: float | None = None
    step: int = 0
    evaluations_since: int = 0
    stopped: bool = False

    def update(self, step: int, value: float | None, rule: EarlyStoppingConfig | None) -> bool:
        """Takes in an evaluation; returns whether it is the best. A value that is undefined never is."""
        sign = 1.0 if self.higher_is_better else -1.0
        margin = rule.min_delta if rule else 0.0
        if value is not None and math.isfinite(value):
            if self.value is None or sign * (value - self.value) > margin:
                self.value, self.step, self.evaluations_since = value, step, 0
                return True
        self.evaluations_since += 1
        self.stopped = rule is not None and self.evaluations_since >= rule.patience
        return False


@dataclass
class StepMeter:
    """Sums since the last log line, and since the run began."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    tokens: int = 0
    cells: int = 0
    examples: int = 0
    seconds: float = 0.0
    """Spent in training steps that compiled nothing."""
    timed_tokens: int = 0
    timed_examples: int = 0
    total: dict[str, float] = field(default_factory=dict)

    _TOTALS: ClassVar[tuple[str, ...]] = ("tokens", "cells", "examples", "seconds", "timed_tokens", "timed_examples")

    def add(self, counts: Mapping[str, int]) -> None:
        """Adds counts, by the names of the fields."""
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)

    def flush(self, learning_rate: float) -> dict[str, float]:
        """Averages since the last flush, as a log line; empties the meter."""
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
        return values

    def check(self, step: int) -> None:
        """Raises RunFailure where a loss or gradient is not finite: such a state is never saved."""
        for name, values in (("loss", self.losses), ("gradient norm", self.norms)):
            if not all(map(math.isfinite, values)):
                raise RunFailure(
                    f"step {step}: the {name} is not finite; the last checkpoint is from before. Lower "
                    "optimizer.learning_rate, raise optimizer.warmup, or set model.dtype=float32"
                )

    def throughput(self) -> dict[str, float]:
        """Whole-run figures: padding share and, unless every step compiled, tokens and examples per second of steps."""
        sums = {name: self.total.get(name, 0) + getattr(self, name) for name in self._TOTALS}
        seconds = sums["seconds"]
        speed = {name: sums[f"timed_{name}"] / seconds for name in ("tokens", "examples") if seconds}
        return {
            **{f"{name}_per_s": value for name, value in speed.items()},
            "padding_share": 1.0 - sums["tokens"] / max(sums["cells"], 1),
            "examples": sums["examples"],
            "train_seconds": seconds,
        }


@dataclass
class Progress:
    """All of it, to and from the checkpoint's JSON."""

    best: BestCheckpoint
    meter: StepMeter = field(default_factory=StepMeter)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Progress:
        return cls(BestCheckpoint(**value["best"]), StepMeter(**value["meter"]))
