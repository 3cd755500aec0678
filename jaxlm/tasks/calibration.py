"""Whether what is predicted with probability p is right in a share p of the cases: measured, drawn and mended."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax

from jaxlm.report.sections import ReportSection

TEMPERATURE = "calibration_temperature"
"""Its name in config.json and summary.json."""


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> tuple[np.ndarray, np.ndarray, float]:
    """Compares the probability of the predicted label with how often it is right.

    Args:
      confidence: float [N], from 0 to 1.
      right: bool [N].
    Returns:
      Mean confidence and accuracy, float64 [bins that are not empty], and the expected calibration error, the sum over
      bins of n_b / N |accuracy_b - confidence_b|: Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """
    bin_N = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(bin_N, minlength=bins)
    full = counts > 0
    mean_confidence = np.bincount(bin_N, confidence, minlength=bins)[full] / counts[full]
    accuracy = np.bincount(bin_N, right, minlength=bins)[full] / counts[full]
    error = float(np.sum(counts[full] / len(bin_N) * np.abs(accuracy - mean_confidence)))
    return mean_confidence, accuracy, error


def expected_calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns that of `calibration` for the likeliest labels.

    Args:
      scores: float [N, C], probabilities.
      labels: int [N].
    """
    predicted = scores.argmax(axis=-1)
    return calibration(scores[np.arange(len(labels)), predicted], predicted == labels)[2]


def choose_temperature(logits: np.ndarray, labels: np.ndarray, *, multilabel: bool = False) -> float:
    """Returns the temperature T of the least mean cross-entropy of `probabilities(logits / T, ...)`.

    It is 1 where the logits were right by themselves, larger where they are too sure; which label is the likeliest does
    not change. Guo et al., "On Calibration of Modern Neural Networks" (2017), section 4.2. Between 0.05 and 20.

    Args:
      logits: float [N, C].
      labels: int [N]; multi-label {0, 1} [N, C].
    """
    logits = np.asarray(logits, np.float64)

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if multilabel:
            return float(np.mean(np.logaddexp(0, scaled) - labels * scaled))
        return -float(np.mean(log_softmax(scaled, axis=-1)[np.arange(len(labels)), labels]))

    # In log T the cross-entropy has one valley: in 1 / T it is convex.
    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def probabilities(logits: np.ndarray, *, multilabel: bool) -> np.ndarray:
    """float64 [N, C] of logits [N, C]: softmax; multi-label the sigmoid of each."""
    logits = np.asarray(logits, np.float64)
    return expit(logits) if multilabel else softmax(logits, axis=-1)


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The error among the rows that are answered when the least confident are left out.

    El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification" (2010).

    Args:
      confidence: float [N].
      right: bool [N].
    Returns:
      Coverage, the share that is answered, and risk, the share of errors among it, float64 [distinct confidences] each
      (rows of the same confidence are answered together), and the mean of the risk over all coverages 1/N, 2/N, ..., 1
      (the area under the curve; lower is better).
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_N, wrong_N = confidence[order], ~np.asarray(right, bool)[order]
    last = np.append(np.flatnonzero(np.diff(sorted_N)), len(order) - 1)  # of each confidence
    answered = last + 1
    risk = np.cumsum(wrong_N)[last] / answered
    sizes = np.diff(answered, prepend=0)
    return answered / len(order), risk, float(np.sum(risk * sizes) / len(order))


_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
"""Shares of rows that the table of abstention names."""


def abstention_sections(confidence: np.ndarray, right: np.ndarray) -> list[ReportSection]:
    """Returns the curve of `risk_coverage`, and a table of the probabilities below which no answer would be given."""
    coverage, risk, area = risk_coverage(confidence, right)
    levels = np.sort(np.unique(confidence))[::-1]
    rows = []
    for wanted in _COVERAGES:
        place = int(np.flatnonzero(coverage <= wanted + 1e-12)[-1]) if (coverage <= wanted + 1e-12).any() else None
        if place is not None and (not rows or rows[-1][1] != float(levels[place])):
            rows.append([f"{coverage[place]:.1%}", float(levels[place]), f"{risk[place]:.2%}"])
    content = {
        "series": [{"x": coverage, "y": risk, "style": "line"}],
        "axes": {"x": "share that is answered", "y": "share of errors among it", "x_range": [0, 1]},
        "alt": "Errors by coverage, " + ", ".join(f"{answered}: {wrong}" for answered, _, wrong in rows),
    }
    note = f"The least confident predictions are left out first. Mean over all shares (AURC): {area:.4f}."
    table = {"columns": ["Answered", "From probability", "Errors among them"], "rows": rows}
    return [ReportSection("Abstention", "chart", content, note), ReportSection("Where to abstain", "table", table)]


def calibration_section(confidence: np.ndarray, right: np.ndarray, *, predicted: str, share: str) -> ReportSection:
    """Returns the chart of `calibration`.

    Args:
      predicted, share: labels of the axes, "probability of the predicted label" and "share that is right".
    """
    x, y, error = calibration(confidence, right)
    content = {
        "series": [{"x": x, "y": y, "style": "line"}],
        "axes": {"x": predicted, "y": share, "diagonal": True, "x_range": [0, 1], "y_range": [0, 1]},
        "alt": f"{share.capitalize()} by probability, "
        + ", ".join(f"{a:.2f}: {b:.2f}" for a, b in zip(x, y, strict=True)),
    }
    note = f"On the dashed line, probability and share are equal. Expected calibration error: {error:.3f}."
    return ReportSection("Calibration", "chart", content, note)
