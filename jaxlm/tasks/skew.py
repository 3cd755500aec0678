"""How tasks with classes treat their unequal sizes: the config's keys, and the `Skew` of the loss that they give."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from jaxlm.errors import UserError, did_you_mean
from jaxlm.metrics.classification import never_recognised, one_vs_rest_counts
from jaxlm.objectives.skewed import NO_SKEW, Skew
from jaxlm.tasks.records import Context, TaskConfig

log = logging.getLogger("jaxlm")

_SHOWN = 20
"""Classes that a line of the log names."""


class SkewConfig(TaskConfig):
    """Keys of tasks with classes that may be of unequal size."""

    class_weights: Literal["none", "inverse", "sqrt", "effective"] | dict[str, Annotated[float, Field(gt=0)]] = "none"
    """Weights in the training loss: by the training rows n of each class 1/n (`inverse`), 1/sqrt(n) or `effective`
    number; or {NAME: weight}, 1 where none is named. Of several labels to a row, weights of the rows that have the
    label."""
    effective_beta: float = Field(default=0.999, gt=0, lt=1)
    """With `class_weights: effective`: b of the effective number (1 - b^n) / (1 - b); the nearer to 1, the nearer to
    `inverse`."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """Training loss; focal: cross-entropy times (1 - p)^`focal_gamma`, p the probability of what is right."""
    focal_gamma: float = Field(default=2.0, ge=0)
    """With `loss: focal`: how much less examples count that are already right; 0 is cross-entropy."""
    logit_adjustment: float = Field(default=0.0, ge=0)
    """Adds this times the logarithm of a class's share to its logit, in the training loss alone; 1 is usual, 0 is
    none."""

    @model_validator(mode="after")
    def _of_use(self) -> SkewConfig:
        for key, needed, given in (
            ("effective_beta", "class_weights=effective", self.class_weights == "effective"),
            ("focal_gamma", "loss=focal", self.loss == "focal"),
        ):
            if not given and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is read with task.{needed} only; set that, or leave {key} out")
        return self

    @property
    def skewed(self) -> str | None:
        """The first of these keys that changes the training loss; None: it is plain cross-entropy."""
        changed = {
            "class_weights": self.class_weights != "none",
            "loss": self.loss != "cross_entropy",
            "logit_adjustment": self.logit_adjustment != 0,
        }
        return next((key for key, differs in changed.items() if differs), None)


def make_skew(
    config: SkewConfig,
    context: Context,
    names: Sequence[str],
    counts: Callable[[], tuple[np.ndarray, int]] | None,
    *,
    kinds: Mapping[str, Sequence[str]] | None = None,
    several: bool = False,
) -> Skew:
    """Returns the `Skew` of a run that is trained, and says the weights in the log.

    Args:
      names: of the classes, in the order of the outputs.
      counts: gives the training examples of each class, int64 [C], and of all; None: nothing is trained.
      kinds: further names that `task.class_weights` may use, each for several classes.
      several: an example may have several of the classes.
    Raises:
      UserError: a weight for a class that there is not; a setting that the focal loss has no use for.
    """
    if config.skewed is None:
        return NO_SKEW
    focal = config.loss == "focal"
    if focal and context.label_smoothing:
        raise UserError(
            "train.label_smoothing: the focal loss (task.loss=focal) is defined for whole labels; leave one of them out"
        )
    if counts is None:
        return NO_SKEW
    counted: np.ndarray | None = None
    total = 0
    if config.logit_adjustment or config.class_weights in ("inverse", "sqrt", "effective"):
        counted, total = counts()
    weights = None
    if isinstance(config.class_weights, dict):
        weights = _named_weights(config.class_weights, names, kinds or {})
    elif counted is not None and config.class_weights != "none":
        rule = (config.class_weights, config.effective_beta)
        weights = positive_weights(counted, total, *rule) if several else class_weights(counted, *rule)
    if weights is not None:
        shown = ", ".join(f"{name} {weight:.3g}" for name, weight in list(zip(names, weights, strict=True))[:_SHOWN])
        log.info("task.class_weights, %s: %s%s", "of the rows that have a label" if several else "by class", shown,
                 "" if len(names) <= _SHOWN else ", ...")  # fmt: skip
    offsets = None
    if counted is not None and config.logit_adjustment:
        offsets = config.logit_adjustment * log_shares(counted, total, several=several)
    return Skew(
        None if weights is None else tuple(np.asarray(weights, np.float64).tolist()),
        config.focal_gamma if focal else None,
        None if offsets is None else tuple(offsets.tolist()),
    )


def accuracy_remarks(metric: str, names: Sequence[str], gold: np.ndarray, predicted: np.ndarray) -> list[str]:
    """Returns the remark on classes that are never recognised, where checkpoints are chosen by accuracy.

    Args:
      gold, predicted: int [N], or {0, 1} [N, C].
    """
    lost = never_recognised(gold, predicted, len(names)) if metric in ("accuracy", "f1_micro") else []
    if not lost:
        return []
    counts = one_vs_rest_counts(gold, predicted, len(names))[2]
    shown = ", ".join(f"{names[c]} ({counts[c]:,})" for c in lost[:_SHOWN]) + (", ..." if len(lost) > _SHOWN else "")
    return [
        f"train.metric={metric} hides classes of which not one is recognised (recall 0): {shown}; "
        "train.metric=f1_macro counts every class alike, task.class_weights helps (docs/guides/small_and_skewed.md)"
    ]


def described_weights(skew: Skew, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Returns the entry of summary.json."""
    weights = skew.class_weights
    return {} if weights is None else {"class_weights": dict(zip(names, weights, strict=True))}


def class_weights(counts: np.ndarray, rule: str, beta: float = 0.999) -> np.ndarray:
    """Returns weights of classes, float64 [C], whose mean over the training examples is 1.

    Args:
      counts: int [C], training examples of each class; a class without any gets weight 1.
      rule: inverse (1 / n), sqrt (1 / sqrt(n)) or effective ((1 - b) / (1 - b^n): Cui et al., "Class-Balanced Loss
        Based on Effective Number of Samples" (2019), equation 2).
      beta: b of the last.
    """
    there = counts > 0
    raw = 1.0 / _size(counts[there], rule, beta)
    weights = np.ones(len(counts))
    weights[there] = raw * counts[there].sum() / (raw * counts[there]).sum()
    return weights


def positive_weights(counts: np.ndarray, total: int, rule: str, beta: float = 0.999) -> np.ndarray:
    """Returns the weights of rows that have a label, float64 [C], beside 1 for those that lack it.

    Args:
      counts: int [C], training rows that have each label; where all or none has it, the absent side counts as one row.
      total: training rows.
      rule, beta: as in `class_weights`: (total - n) / n, its square root, or the ratio of both effective numbers.
    """
    have, lack = np.maximum(counts, 1), np.maximum(total - counts, 1)
    return np.where(counts > 0, _size(lack, rule, beta) / _size(have, rule, beta), 1.0)


def log_shares(counts: np.ndarray, total: int, *, several: bool = False) -> np.ndarray:
    """Returns log(n / total), float64 [C], or with `several` log(n / (total - n)); 0 examples count as one."""
    have = np.maximum(counts, 1).astype(np.float64)
    return np.log(have / (np.maximum(total - counts, 1) if several else max(total, 1)))


def _size(counts: np.ndarray, rule: str, beta: float) -> np.ndarray:
    """What a class of n > 0 examples counts for."""
    n = counts.astype(np.float64)
    if rule == "effective":
        return -np.expm1(n * np.log(beta)) / (1.0 - beta)
    return np.sqrt(n) if rule == "sqrt" else n


def _named_weights(given: Mapping[str, float], names: Sequence[str], kinds: Mapping[str, Sequence[str]]) -> np.ndarray:
    weights = dict.fromkeys(names, 1.0)
    for name, weight in sorted(given.items(), key=lambda item: item[0] in weights):  # a class's own weight comes last
        if name not in weights and name not in kinds:
            raise UserError(
                f"task.class_weights: {name!r} is not one of the classes ({', '.join(names[:_SHOWN])})"
                f"{did_you_mean(name, [*names, *kinds])}"
            )
        for each in (name,) if name in weights else kinds[name]:
            weights[each] = weight
    return np.asarray([weights[name] for name in names])
