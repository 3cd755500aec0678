"""Decision thresholds of a classification: what the config says, what a checkpoint holds, what validation settles."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from jaxlm.errors import UserError, did_you_mean
from jaxlm.metrics.classification import PRIMARY, classification_metrics
from jaxlm.metrics.thresholds import best_threshold, best_thresholds, counted, decides
from jaxlm.tasks.labels import LabelSet
from jaxlm.tasks.records import Context

log = logging.getLogger("jaxlm")

STORED = "decision_thresholds"
"""Key of config.json: label name -> probability from which it is predicted."""
DEFAULT = 0.5

Probability = Annotated[float, Field(gt=0, lt=1)]
Threshold = Probability | Literal["tuned"] | dict[str, Probability | Literal["tuned"]]


class Thresholds(NamedTuple):
    """The probabilities from which labels are predicted.

    Attributes:
      values: by label id. Of several labels to a row, 0.5 where there is none; of one label to a row at most one entry:
        that label is predicted from this probability on, else the likeliest of the others.
      tuned: the labels whose threshold validation settles.
      metric: what it settles them by.
    """

    values: Mapping[int, float] = {}
    tuned: tuple[int, ...] = ()
    metric: str = ""

    def stored(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Returns the entry of config.json; {} without thresholds."""
        return {STORED: {names[c]: value for c, value in self.values.items()}} if self.values else {}

    def tune(self, labels: LabelSet, gold: np.ndarray, probabilities: np.ndarray) -> Thresholds:
        """Returns the thresholds of the highest score on these rows, and says them in the log.

        Args:
          gold: int [N], or {0, 1} [N, C].
          probabilities: float64 [N, C].
        """
        fixed = {c: value for c, value in self.values.items() if c not in self.tuned}
        if labels.problem == "multilabel":
            found = best_thresholds(gold, probabilities, self.tuned, fixed, self.metric)
        else:
            score = counted(self.metric, labels.names)
            found = {c: best_threshold(gold, probabilities, c, score) for c in self.tuned}
        made = self._replace(values={**fixed, **found})
        before, after = (
            classification_metrics(labels.problem, gold, probabilities, labels.names, threshold=values or DEFAULT)
            for values in (fixed, made.values)
        )
        shown = ", ".join(f"{labels.names[c]} {value:.4f}" for c, value in list(found.items())[:20])
        log.info("task.threshold: %s%s (validation %s %.4f; untuned %.4f)", shown or "none",
                 ", ..." if len(found) > 20 else "", self.metric,
                 after.get(self.metric, 0.0), before.get(self.metric, 0.0))  # fmt: skip
        return made


def settle_thresholds(
    given: Threshold, labels: LabelSet, context: Context, *, trained: bool, validated: bool
) -> Thresholds:
    """Returns the thresholds of a run.

    Args:
      given: `task.threshold`; "tuned" reads those that the checkpoint holds where nothing is trained.
      trained: there are training rows.
      validated: there are validation rows.
    Raises:
      UserError: a threshold that the problem has no use for; nothing to tune it on, or by.
    """
    problem, names = labels.problem, labels.names
    if given == DEFAULT:
        return Thresholds()
    if problem == "regression":
        if given == "tuned" and not trained:
            return Thresholds()
        raise UserError("task.threshold: a regression predicts no labels; leave it out")
    if given == "tuned" and not trained:
        return Thresholds(_stored(context.hf_config or {}, names))
    by_label = _by_label(given, labels)
    tuned = tuple(c for c, value in by_label.items() if value == "tuned")
    values = {c: float(value) for c, value in by_label.items() if value != "tuned"}
    if not tuned:
        return Thresholds(values)
    if not trained:
        known = _stored(context.hf_config or {}, names)
        return Thresholds({**{c: known[c] for c in tuned if c in known}, **values})
    if not validated:
        raise UserError("task.threshold: tuned: expected data.validation to tune it on")
    metric = context.metric or PRIMARY[problem]
    chosen = decides(problem, metric, names)
    if chosen is None:
        raise UserError(
            f"task.threshold: tuned: by train.metric={metric} the best threshold predicts everything or nothing; "
            "expected another metric, such as f1_macro"
        )
    return Thresholds(values, tuned, chosen)


def _by_label(given: Threshold, labels: LabelSet) -> dict[int, float | str]:
    names, several = labels.names, labels.problem == "multilabel"
    if isinstance(given, dict):
        for name in given:
            if name not in names:
                raise UserError(
                    f"task.threshold: {name!r} is not one of the labels ({', '.join(names[:20])})"
                    f"{did_you_mean(name, names)}"
                )
        if not several and len(given) != 1:
            raise UserError(
                "task.threshold: expected one label, which is told from the others by its probability; found "
                f"{', '.join(given) or 'none'}"
            )
        return {names.index(name): value for name, value in given.items()}
    if labels.problem == "multiclass":
        raise UserError(
            f"task.threshold: of {len(names)} labels, expected the one that is told from the others, as in "
            f"{{{names[-1]}: {given}}}"
        )
    return dict.fromkeys(range(len(names)) if several else (1,), given)


def _stored(hf_config: Mapping[str, Any], names: tuple[str, ...]) -> dict[int, float]:
    held = hf_config.get(STORED) or {}
    if not isinstance(held, Mapping):
        raise UserError(f"config.json: {STORED}: expected an object of labels and numbers, found {held!r:.60}")
    for name, value in held.items():
        if name not in names or isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"config.json: {STORED}: expected labels and numbers, found {name!r:.40}: {value!r:.40}")
    return {names.index(name): float(value) for name, value in held.items()}
