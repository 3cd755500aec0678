"""Text classification: single texts and pairs; binary, multi-class, multi-label, regression."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field
from scipy.special import expit, softmax

from jaxlm.data.config import DataConfig
from jaxlm.data.examples.example import Example
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.metrics.classification import PRIMARY, classification_metrics, metric_names, predicted_labels
from jaxlm.objectives.classification import LOSSES, Loss
from jaxlm.section import Section
from jaxlm.tasks.labels import LabelEncoder, distinct_labels, infer_problem
from jaxlm.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("jaxlm")

# HF's config.json field. One output trained as regression, two as binary: see objectives.classification.
_HF_PROBLEM = {
    "binary": "single_label_classification",
    "multiclass": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


class ClassificationConfig(Section):
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
    label_separator: str | None = None
    """For multi-label columns of one string: what stands between the labels. jsonl and parquet may hold lists."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Multi-label: a label is predicted at or above this probability."""
    baselines: bool = False
    """Also score a majority baseline and TF-IDF with logistic regression on the test (else validation) rows."""


@dataclass(frozen=True)
class Examples:
    """A split ready for packing, and what was counted on the way."""

    examples: list[Example]
    table: Table
    truncated: int
    """Rows longer than max_length, cut or windowed."""
    skipped: int
    """Bad rows left out (`data.on_bad_row=skip`)."""

    def describe(self) -> dict[str, int]:
        """What summary.json says of the split."""
        return {
            "rows": len(self.table.rows),
            "truncated": self.truncated,
            "skipped": self.skipped + self.table.skipped,
        }


@dataclass(frozen=True)
class Classification:
    """The task of one run: what it predicts, with which labels."""

    config: ClassificationConfig
    problem: str
    label_names: tuple[str, ...]

    head = "classification"

    @classmethod
    def from_data(
        cls, config: ClassificationConfig, train: Table | None, checkpoint_labels: Sequence[str] | None
    ) -> Classification:
        """Settles problem and label names: task.labels, else the checkpoint's, else those of the training rows.

        Raises:
          UserError: a missing column; nothing to take the labels from; labels that fit no such problem.
        """
        values = []
        if train is not None:
            train.require(*config_columns(config), key="task")
            values = [row[config.label] for row in train.rows]
        problem = config.problem
        if problem == "auto":
            problem = infer_problem(values, config.label_separator) if values else "auto"
        if problem == "regression":
            return cls(config, problem, (config.label,))
        names = config.labels
        if (
            names is None
            and checkpoint_labels
            and set(distinct_labels(values, problem, config.label_separator)) <= _known(checkpoint_labels)
        ):
            names = tuple(checkpoint_labels)
        if names is None:
            names = distinct_labels(values, problem, config.label_separator)
        if problem in ("auto", "binary", "multiclass"):
            if problem == "binary" and len(names) != 2:
                raise UserError(f"task.problem=binary: expected two labels, found {len(names)}: {', '.join(names[:8])}")
            problem = "binary" if len(names) == 2 else "multiclass"
        if len(names) < (1 if problem == "multilabel" else 2):
            raise UserError(
                f"task.label={config.label}: expected at least two different labels, found "
                f"{', '.join(names) or 'none'}; name them in task.labels"
            )
        return cls(config, problem, names)

    @property
    def num_outputs(self) -> int:
        return len(self.label_names)

    @property
    def text_columns(self) -> tuple[str, ...]:
        return text_columns(self.config)

    @property
    def primary_metric(self) -> str:
        return PRIMARY[self.problem]

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("loss", *metric_names(self.problem, self.label_names))

    @property
    def model_overrides(self) -> dict[str, Any]:
        """Fields of the model's config that the task decides."""
        return {}

    def describe(self) -> dict[str, Any]:
        """What summary.json says of the task."""
        return {
            "problem": self.problem,
            "label_names": list(self.label_names),
            "task": {"kind": self.config.kind, "text": list(self.text_columns), "label": self.config.label},
        }

    def loss(self, label_smoothing: float = 0.0, chunk: int | None = None) -> Loss:
        del chunk
        return LOSSES[self.problem](label_smoothing)

    def examples(
        self, table: Table, tokenizer: Tokenizer, data: DataConfig, *, labelled: bool = True, key: str = "data"
    ) -> Examples:
        """Tokenizes a split.

        Args:
          labelled: read labels; otherwise every label is 0.
          key: config key of the table, for errors.
        Raises:
          UserError: a missing column, an empty text or a bad label (unless `data.on_bad_row` is skip).
        """
        table.require(*(config_columns(self.config) if labelled else self.text_columns), key=key)
        encoder = LabelEncoder(self.problem, self.label_names, self.config.label, self.config.label_separator)
        blank = np.zeros(self.num_outputs, np.float32) if self.problem == "multilabel" else np.zeros((), self._dtype)
        kept, labels, skipped = [], [], 0
        for i in range(len(table.rows)):
            try:
                self._check_text(table, i)
                labels.append(encoder.encode(table, i) if labelled else blank)
                kept.append(i)
            except UserError as error:
                if data.on_bad_row == "stop":
                    raise
                skipped += 1
                log.warning("skipped: %s", error)
        first, *second = ([str(table.rows[i][column]) for i in kept] for column in self.text_columns)
        windows = tokenizer.encode(
            first,
            second[0] if second else None,
            max_length=data.max_length,
            stride=data.stride if data.long_text == "window" else None,
        )
        examples = [
            Example(part.ids, part.type_ids, label, row, 1.0 / len(parts))
            for row, label, parts in zip(kept, labels, windows, strict=True)
            for part in parts
        ]
        truncated = sum(len(parts) > 1 or parts[0].truncated for parts in windows)
        if truncated:
            fate = "read in windows" if data.long_text == "window" else "cut"
            log.info("%s: %d of %d texts longer than data.max_length=%d: %s", table.name, truncated, len(kept),
                     data.max_length, fate)  # fmt: skip
        return Examples(examples, table, truncated, skipped)

    def show(self, batch: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> list[str]:
        """The first packed row, decoded, with its labels: what the model will really see."""
        lines = ["first packed row:"]
        for slot, example in enumerate(batch["examples"][0]):
            if example < 0:
                continue
            inside = batch["segment_ids"][0] == slot + 1
            label = batch["labels"][0, slot]
            if self.problem == "multilabel":
                shown = ", ".join(name for name, on in zip(self.label_names, label, strict=True) if on) or "none"
            else:
                shown = f"{float(label):g}" if self.problem == "regression" else self.label_names[int(label)]
            text = tokenizer.decode(batch["tokens"][0][inside], skip_special_tokens=False)
            lines.append(f"  {slot + 1:3d}  row {example + 1}, {int(inside.sum())} tokens, label {shown}: {text}")
        padding = int((batch["segment_ids"][0] == 0).sum())
        return [*lines, f"       {padding} tokens of padding"]

    @property
    def _dtype(self) -> Any:
        return np.float32 if self.problem == "regression" else np.int32

    def _check_text(self, table: Table, row: int) -> None:
        for column in self.text_columns:
            value = table.rows[row][column]
            if value is None or not str(value).strip():
                raise UserError(
                    f"{table.where(row)}: {column} is empty; expected a text (data.on_bad_row=skip leaves it out)"
                )

    def scores(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs [N, C] -> probabilities float64 [N, C], or targets [N] for regression."""
        outputs = np.asarray(outputs, np.float64)
        if self.problem == "regression":
            return outputs[:, 0]
        return expit(outputs) if self.problem == "multilabel" else softmax(outputs, axis=-1)

    def metrics(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Scores of a whole split: outputs [N, C], labels [N] or [N, C]."""
        return classification_metrics(
            self.problem, labels, self.scores(outputs), self.label_names, threshold=self.config.threshold
        )

    def predictions(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """One prediction per row: {"label", "scores"}, {"labels", "scores"} or {"score"}."""
        scores = self.scores(outputs)
        if self.problem == "regression":
            return [{"score": float(s)} for s in scores]
        decided = predicted_labels(self.problem, scores, threshold=self.config.threshold)
        named = [dict(zip(self.label_names, map(float, row), strict=True)) for row in scores]
        if self.problem == "multilabel":
            chosen = [[n for n, on in zip(self.label_names, row, strict=True) if on] for row in decided]
            return [{"labels": labels, "scores": s} for labels, s in zip(chosen, named, strict=True)]
        return [{"label": self.label_names[int(i)], "scores": s} for i, s in zip(decided, named, strict=True)]

    def hf_config(self) -> dict[str, Any]:
        """What an exported config.json says of the task."""
        return {
            "id2label": {str(i): name for i, name in enumerate(self.label_names)},
            "label2id": {name: i for i, name in enumerate(self.label_names)},
            "problem_type": _HF_PROBLEM[self.problem],
        }

    @classmethod
    def from_hf(cls, config: ClassificationConfig, hf_config: Mapping[str, Any]) -> Classification:
        """The task of an exported or downloaded checkpoint, from its config.json."""
        id2label = hf_config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        names = tuple(name for _, name in sorted((int(i), str(n)) for i, n in id2label.items()))
        problem = config.problem
        if problem == "auto":
            if hf_config.get("problem_type") == "multi_label_classification":
                problem = "multilabel"
            elif len(names) == 1:
                problem = "regression"
            else:
                problem = "binary" if len(names) == 2 else "multiclass"
        return cls(config, problem, names)


def text_columns(config: ClassificationConfig) -> tuple[str, ...]:
    return (config.text,) if isinstance(config.text, str) else tuple(config.text)


def config_columns(config: ClassificationConfig) -> tuple[str, ...]:
    """The columns that a labelled row must have."""
    return (*text_columns(config), config.label)


def _known(names: Sequence[str]) -> set[str]:
    """What a checkpoint's label names can stand for: themselves, or their ids where they are words."""
    if any(name.lstrip("-").isdigit() for name in names):
        return set(names)
    return set(names) | {str(i) for i in range(len(names))}
