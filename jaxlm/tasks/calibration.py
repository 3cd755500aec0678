"""Whether what is predicted with probability p is right in a share p of the cases; for report.html."""

from __future__ import annotations

import numpy as np

from jaxlm.report.sections import ReportSection


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
