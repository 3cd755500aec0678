"""Text classification: single texts and pairs; binary, multi-class, multi-label, regression."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.dataset import Dataset
from jaxlm.data.examples.bad_rows import BadRows
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.examples.sampling import sampled_counts
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.examples.texts import TextCells
from jaxlm.data.label_names import hf_label_names
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.fields import Batch, Field
from jaxlm.metrics.classification import PRIMARY, classification_metrics, metric_names, predicted_labels
from jaxlm.objectives.classification import LOSSES
from jaxlm.objectives.skewed import NO_SKEW, Skew, skewed_loss
from jaxlm.report.sections import ReportSection
from jaxlm.tasks.base import RowTask
from jaxlm.tasks.baselines import LabelledTexts, baseline_scores
from jaxlm.tasks.calibration import TEMPERATURE, choose_temperature, expected_calibration_error, probabilities
from jaxlm.tasks.classification_config import ClassificationConfig
from jaxlm.tasks.classification_report import PredictedRow, classification_sections, training_section
from jaxlm.tasks.first_row import show_first_row
from jaxlm.tasks.labels import LabelEncoder, LabelSet, count_rows, labels_of_checkpoint, labels_of_rows
from jaxlm.tasks.records import Answer, Context, Metric, Outputs
from jaxlm.tasks.skew import accuracy_remarks, described_weights, make_skew
from jaxlm.tasks.thresholds import DEFAULT, Thresholds, settle_thresholds
from jaxlm.tasks.window_pooling import pool_windows

log = logging.getLogger("jaxlm")

_SHOWN = 20
"""Labels that a line of the log names."""

# HF's config.json field. One output trained as regression, two as binary: see objectives.classification.
_HF_PROBLEM = {
    "binary": "single_label_classification",
    "multiclass": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


@dataclass(frozen=True, eq=False)
class Classification(RowTask):
    """Predicts one label, several, or a number for each text or pair of texts.

    Attributes:
      config: the section `task`.
      context: settings and tokenizer.
      labels: the problem and its labels.
      skew: how the training loss treats labels of unequal size.
      sampled: rows of each label in an epoch, where `data.sampling` changes them; {}: those of the training rows.
      temperature: what the outputs are divided by.
      thresholds: the probabilities from which labels are predicted.
    """

    config: ClassificationConfig
    context: Context
    labels: LabelSet
    skew: Skew = NO_SKEW
    sampled: Mapping[str, int] = field(default_factory=dict[str, int])
    temperature: float = 1.0
    thresholds: Thresholds = Thresholds()

    Config = ClassificationConfig
    head = "classification"
    unused_data_keys = tuple(key for key in RowTask.unused_data_keys if key != "sampling")

    @classmethod
    def text_columns(cls, config: ClassificationConfig) -> tuple[str, ...]:
        return (config.text,) if isinstance(config.text, str) else tuple(config.text)

    @classmethod
    def label_columns(cls, config: ClassificationConfig) -> tuple[str, ...]:
        return (config.label,)

    @classmethod
    def create(cls, config: ClassificationConfig, context: Context, sources: TableSources | None) -> Classification:
        """Label names are those of `task.labels`, else of the checkpoint, else of the training rows.

        Raises:
          UserError: a missing column; no source of labels; labels that do not fit the problem; a setting that the
            problem does not use.
        """
        train = None if sources is None else sources.tables.get("train")
        if train is None and context.hf_config is not None:
            labels = labels_of_checkpoint(context.hf_config, config.problem)
        else:
            if train is not None:
                train.require(config.label, key="task.label")
            settled = None if sources is None else sources.labelled
            labels = labels_of_rows(
                settled,
                config.label,
                problem=config.problem,
                names=config.labels,
                separator=config.label_separator,
                known=None if context.hf_config is None else hf_label_names(context.hf_config),
            )
            if train is not None and settled is not train and labels.problem != "regression":
                encoder = LabelEncoder(labels, config.label, config.label_separator)
                counted = count_rows(encoder, train, len(labels.names))[0]
                labels = replace(labels, counts=dict(zip(labels.names, counted.tolist(), strict=True)))
            log.info("task: %s", labels.describe())
        problem = labels.problem
        if problem == "regression" and context.label_smoothing:
            raise UserError("train.label_smoothing: a regression has no classes to smooth over; leave it out")
        if problem == "regression" and config.skewed is not None:
            raise UserError(f"task.{config.skewed}: a regression has no classes to weigh; leave it out")
        if problem == "regression" and config.calibration != "none":
            raise UserError("task.calibration: a regression gives no probabilities; leave it out")
        trained = train is not None and not context.trained
        read = {} if sources is None else sources.tables  # not of every split where a dry run needs the rows alone
        validated = "validation" in read or context.data.validation is not None
        if config.calibration != "none" and trained and not validated:
            raise UserError("task.calibration: expected data.validation to choose the temperature on; or leave it out")
        thresholds = settle_thresholds(
            config.threshold, labels, context, trained=trained, validated=validated
        )  # fmt: skip
        if config.pool_windows != "mean" and context.data.long_text != "window":
            raise UserError("task.pool_windows: texts are cut, not read in windows; set data.long_text=window")
        encoder = LabelEncoder(labels, config.label, config.label_separator)
        counts = None if train is None else functools.partial(count_rows, encoder, train, len(labels.names))
        sampled: dict[str, int] = {}
        if context.data.sampling != "natural":
            if problem in ("multilabel", "regression"):
                raise UserError(
                    f"data.sampling: rows of a {problem} problem have no one label to sample by; leave it out"
                    + ("; task.class_weights weighs each label" if problem == "multilabel" else "")
                )
            if counts is not None:
                drawn = sampled_counts(counts()[0], context.data.sampling)
                sampled = dict(zip(labels.names, drawn.tolist(), strict=True))
                shown = ", ".join(f"{name} {count:,}" for name, count in list(sampled.items())[:_SHOWN])
                log.info("data.sampling: rows of an epoch: %s%s", shown, ", ..." if len(sampled) > _SHOWN else "")
                counts = functools.partial(tuple, (drawn, int(drawn.sum())))
        skew = make_skew(config, context, labels.names, counts, several=problem == "multilabel")
        return cls(config, context, labels, skew, sampled, _kept_temperature(context), thresholds)

    @property
    def problem(self) -> str:
        """binary, multiclass, multilabel or regression."""
        return self.labels.problem

    @property
    def label_names(self) -> tuple[str, ...]:
        """In the order of the head's outputs; of a regression, its column."""
        return self.labels.names

    @property
    def num_outputs(self) -> int:
        return len(self.label_names)

    @property
    def fields(self) -> tuple[Field, ...]:
        labels = {
            "multilabel": Field("labels", "slot", np.float32, (len(self.label_names),)),
            "regression": Field("labels", "slot", np.float32),
        }
        return (
            Field("token_types", "token"),
            Field("slot_positions", "position"),
            labels.get(self.problem, Field("labels", "slot")),
        )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        names = metric_names(self.problem, self.label_names)
        primary = PRIMARY[self.problem]
        calibrated = ("ece",) if self.problem in ("binary", "multiclass") else ()
        ordered = (primary, "loss", *(name for name in names if name != primary), *calibrated)
        hidden = ("precision_", "recall_", "f1_micro", "ece")
        return tuple(
            Metric(name, name not in ("loss", "mse", "mae", "ece"), "/" not in name and not name.startswith(hidden))
            for name in ordered
        )

    def examples(self, table: Table, *, labelled: bool, key: str) -> Examples:
        data, texts = self.context.data, self.text_columns(self.config)
        table.require(*texts, *((self.config.label,) if labelled else ()), key=key)
        encoder = LabelEncoder(self.labels, self.config.label, self.config.label_separator)
        cells = TextCells(table, texts, allow_empty=not labelled)
        labels_field = self.fields[-1]
        blank = np.zeros(labels_field.shape, labels_field.dtype)
        labels: list[np.ndarray | None] = [None] * len(table.rows)
        kept: dict[int, list[str]] = {}
        bad = BadRows(table, data, labelled=labelled, key=key)
        for i in range(len(table.rows)):
            try:
                read = cells.read(i)
                labels[i] = encoder.encode(table, i) if labelled else None
                kept[i] = read
            except UserError as error:
                bad.add(i, error)
        bad.say()
        first, *second = ([read[column] for read in kept.values()] for column in range(len(texts)))
        windows = self.context.tokenizer.encode(
            first,
            second[0] if second else None,
            max_length=data.max_length,
            stride=data.stride if data.long_text == "window" else None,
            ids=self.context.token_ids,
        )
        examples = []
        for i, parts in zip(kept, windows, strict=True):
            label = labels[i] if labels[i] is not None else blank
            for part in parts:
                pooled = np.asarray(0 if self.context.pool == "first" else len(part.ids) - 1, np.int32)
                arrays = {"tokens": part.ids, "token_types": part.type_ids, "slot_positions": pooled, "labels": label}
                examples.append(Example(arrays, i, 1.0 / len(parts)))
        truncated = sum(len(parts) > 1 or parts[0].truncated for parts in windows)
        if truncated:
            fate = "read in windows" if data.long_text == "window" else "cut"
            log.info("%s: %d of %d texts longer than data.max_length=%d: %s", table.name, truncated, len(kept),
                     data.max_length, fate)  # fmt: skip
        counts = {"truncated": truncated, "skipped": len(bad.errors)}
        classes = None
        if labelled and self.problem in ("binary", "multiclass"):
            classes = np.asarray([-1 if label is None else label for label in labels], np.int64)
        return Examples(table, examples, labels, counts, bad.errors, classes)

    @property
    def distribution(self) -> Literal["softmax", "sigmoid"] | None:
        return None if self.problem == "regression" else "sigmoid" if self.problem == "multilabel" else "softmax"

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        smoothing = self.context.label_smoothing
        if self.problem == "regression":
            return LOSSES[self.problem](smoothing)(outputs, batch)
        return skewed_loss(self.problem, smoothing, self.skew)(outputs, batch)

    def measure(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Outputs:
        return Outputs(slots={"logits": outputs})

    def decode(self, example: Example, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 [C]."""
        return outputs["logits"]

    def answer(self, row: Mapping[str, Any], parts: Sequence[tuple[Example, np.ndarray]]) -> np.ndarray:
        """float32 [C]: the windows' outputs in one, as `task.pool_windows` says."""
        outputs = np.stack([logits for _, logits in parts])
        return pool_windows(outputs, [example.weight for example, _ in parts], self.config.pool_windows)

    def prediction(self, row: Mapping[str, Any], kept: np.ndarray) -> dict[str, Any]:
        """{"label", "scores"}, {"labels", "scores"} or {"score"}."""
        scores = self.probabilities(kept[None])
        if self.problem == "regression":
            return {"score": float(scores[0])}
        decided = predicted_labels(self.problem, scores, threshold=self.thresholds.values or DEFAULT)[0]
        named = dict(zip(self.label_names, map(float, scores[0]), strict=True))
        if self.problem == "multilabel":
            return {"labels": [n for n, on in zip(self.label_names, decided, strict=True) if on], "scores": named}
        return {"label": self.label_names[int(decided)], "scores": named}

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs [N, C] -> probabilities float64 [N, C], or targets [N] for regression."""
        outputs = np.asarray(outputs, np.float64)
        if self.problem == "regression":
            return outputs[:, 0]
        return probabilities(outputs / self.temperature, multilabel=self.problem == "multilabel")

    def scores(self, sums: Mapping[str, float], answers: Sequence[Answer], dataset: Dataset) -> dict[str, float]:
        """Plain loss (no label smoothing, no `skew`) of the pooled windows, and `metrics.classification`, over the
        whole split."""
        kept = np.stack([answer.kept for answer in answers])
        outputs = kept / np.float32(self.temperature)
        labels = np.stack([answer.label for answer in answers])
        batch = {"labels": jnp.asarray(labels), "weights": jnp.ones(len(answers), jnp.float32)}
        total, weight = LOSSES[self.problem](0.0)(jnp.asarray(outputs), batch)
        found = classification_metrics(
            self.problem,
            labels,
            self.probabilities(kept),
            self.label_names,
            threshold=self.thresholds.values or DEFAULT,
        )
        if self.problem in ("binary", "multiclass"):
            found["ece"] = expected_calibration_error(self.probabilities(kept), labels)
        return {"loss": float(total) / float(weight), **found}

    def tune(self, answers: Sequence[Answer]) -> Classification:
        """Chooses what `task.calibration` and then `task.threshold` leave to the validation rows."""
        labelled = [answer for answer in answers if answer.label is not None]
        if not labelled:
            return self
        made = self
        logits, labels = (np.stack([getattr(answer, name) for answer in labelled]) for name in ("kept", "label"))
        if self.config.calibration != "none":
            temperature = choose_temperature(logits, labels, multilabel=self.problem == "multilabel")
            log.info("task: outputs are divided by a temperature of %.3f, chosen on the validation split", temperature)
            made = replace(made, temperature=temperature)
        if made.thresholds.tuned:
            tuned = made.thresholds.tune(made.labels, labels.astype(np.int64), made.probabilities(logits))
            made = replace(made, thresholds=tuned)
        return made

    def describe(self) -> dict[str, Any]:
        texts = list(self.text_columns(self.config))
        return {
            "problem": self.problem,
            "label_names": list(self.label_names),
            "label_counts": dict(self.labels.counts),
            **({} if self.labels.positive is None else {"positive_label": self.labels.positive}),
            "problem_because": self.labels.why,
            "task": {"kind": self.config.kind, "text": texts, "label": self.config.label, **self._calibrated()},
            **self.thresholds.stored(self.label_names),
            **({"sampled_counts": dict(self.sampled)} if self.sampled else {}),
            **described_weights(self.skew, self.label_names),
        }

    def _calibrated(self) -> dict[str, float]:
        """The temperature, where it is not 1, by the name that it has in config.json and summary.json."""
        return {} if self.temperature == 1.0 else {TEMPERATURE: self.temperature}

    def show(self, batch: Batch) -> list[str]:
        def describe(slot: int, inside: np.ndarray) -> str:
            label = batch["labels"][0, slot]
            if self.problem == "multilabel":
                shown = ", ".join(name for name, on in zip(self.label_names, label, strict=True) if on) or "none"
            else:
                shown = f"{float(label):g}" if self.problem == "regression" else self.label_names[int(label)]
            text = self.context.tokenizer.decode(batch["tokens"][0][inside], skip_special_tokens=False)
            return f", label {shown}: {text}"

        return [f"task: {self.labels.describe()}", *show_first_row(batch, "example", describe)]

    def baselines(self, train: Dataset, test: Dataset) -> dict[str, dict[str, float]]:
        if not self.config.baselines or self.problem not in ("binary", "multiclass"):
            return {}
        texts = self._texts(train), self._texts(test)
        return baseline_scores(self.problem, self.label_names, *texts, self.context.seed)

    def remarks(self, metric: str, answers: Sequence[Answer]) -> list[str]:
        labelled = [answer for answer in answers if answer.label is not None]
        if not labelled or self.problem == "regression":
            return []
        gold = np.stack([answer.label for answer in labelled]).astype(np.int64)
        scores = self.probabilities(np.stack([answer.kept for answer in labelled]))
        decided = predicted_labels(self.problem, scores, threshold=self.thresholds.values or DEFAULT)
        return accuracy_remarks(metric, self.label_names, gold, decided)

    def report(self, answers: Sequence[Answer]) -> list[ReportSection]:
        rows = [PredictedRow(a.row, a.label, self.prediction(a.row, a.kept)) for a in answers]
        sections = classification_sections(self.problem, self.label_names, rows, self.text_columns(self.config))
        if self.temperature != 1.0:
            said = f" The outputs are divided by {self.temperature:.3f}, chosen on the validation split."
            sections = [s._replace(note=s.note + said) if s.title == "Calibration" else s for s in sections]
        weights = described_weights(self.skew, self.label_names).get("class_weights", {})
        return [*sections, *training_section(self.labels.counts, self.sampled, weights)]

    def _texts(self, dataset: Dataset) -> LabelledTexts:
        """The usable rows of a split."""
        split, columns = dataset.examples(), self.text_columns(self.config)
        assert split is not None
        used = sorted({example.row for example in split.examples})
        texts = [" ".join(str(split.table.rows[i][column]) for column in columns) for i in used]
        return LabelledTexts(texts, np.asarray([split.labels[i] for i in used]))

    def hf_config(self) -> dict[str, Any]:
        return {
            "id2label": {str(i): name for i, name in enumerate(self.label_names)},
            "label2id": {name: i for i, name in enumerate(self.label_names)},
            "problem_type": _HF_PROBLEM[self.problem],
            **self.thresholds.stored(self.label_names),
            **({} if self.labels.numbered else {"label_ids": False}),
            **self._calibrated(),
        }


def _kept_temperature(context: Context) -> float:
    """What a trained model was calibrated with; 1 for one that is trained (again).

    Raises:
      UserError: config.json holds something else.
    """
    value = (context.hf_config or {}).get(TEMPERATURE, 1.0) if context.trained else 1.0
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UserError(f"config.json, {TEMPERATURE}: expected a number above 0, found {value!r}")
    return float(value)
