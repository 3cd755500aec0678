"""The config section `task` of classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from jaxlm.tasks.records import TaskConfig
from jaxlm.tasks.skew import SkewConfig
from jaxlm.tasks.thresholds import Threshold
from jaxlm.tasks.window_pooling import WindowPooling


class ClassificationConfig(SkewConfig):
    """Fine-tuning to predict one label, several, or a number for each text or pair of texts."""

    kind: Literal["classification"] = "classification"
    """What is learned; absent: classification."""
    text: str | tuple[str, str] = "text"
    """Text column, or the two columns of a pair."""
    label: str = "label"
    """Label column."""
    problem: Literal["auto", "binary", "multiclass", "multilabel", "regression"] = "auto"
    """Kind of target, and so the loss; `auto`: taken from the training labels."""
    labels: tuple[str, ...] | None = None
    """Label names in id order; absent: the checkpoint's, else the sorted labels of the training rows."""
    label_separator: str | None = Field(default=None, min_length=1)
    """For multi-label columns of one string: what stands between the labels. jsonl and parquet may hold lists."""
    threshold: Threshold = 0.5
    """Probability from which a label is predicted: of several labels to a row, of each; of two, of the second; {LABEL:
    number}, of that one, else the likeliest of the others. tuned: chosen on the validation rows by `train.metric`."""
    calibration: Literal["none", "temperature"] = "none"
    """After training, divide the outputs by the temperature that gives the validation rows the least cross-entropy, so
    that probabilities say how often predictions are right; it is kept in the exported config.json."""
    pool_windows: WindowPooling = "mean"
    """What a text in several windows (`data.long_text: window`) gets: the mean of their outputs, the greatest of each
    output, or those of the first window."""
    baselines: bool = False
    """Also score a majority baseline and TF-IDF with logistic regression on the test (else validation) rows."""

    @classmethod
    def of_checkpoint(cls) -> TaskConfig:
        return cls(threshold="tuned")  # as the checkpoint has it

    @classmethod
    def of_texts(cls, columns: Sequence[str]) -> TaskConfig:
        return super().of_texts(columns).model_copy(update={"threshold": "tuned"})
