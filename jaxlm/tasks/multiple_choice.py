"""Multiple choice: which of several candidates answers a question, or goes on a text, best."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from scipy.special import softmax

from jaxlm.data.augmentation.copies import edit_texts
from jaxlm.data.augmentation.editor import Editor
from jaxlm.data.dataset import Dataset
from jaxlm.data.examples.bad_rows import BadRows
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.examples.texts import TextCells
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.fields import Batch, Field
from jaxlm.objectives.multiple_choice import multiple_choice_loss
from jaxlm.report.sections import ReportSection, excerpt
from jaxlm.tasks.base import RowTask
from jaxlm.tasks.first_row import show_first_row
from jaxlm.tasks.label_cells import number as as_number
from jaxlm.tasks.records import Answer, Context, Metric, Outputs, TaskConfig

log = logging.getLogger("jaxlm")

_MISTAKES = 20


class MultipleChoiceConfig(TaskConfig):
    """Fine-tuning to choose among candidates, each of which is read beside the question."""

    kind: Literal["multiple_choice"] = "multiple_choice"
    """What is learned."""
    text: str = "question"
    """Column of the question, or of the text that the candidates go on."""
    choices: tuple[str, ...] | str = "choices"
    """Columns of the candidates; or one column of lists, all of one length."""
    label: str = "label"
    """Column of the right candidate: its number from 0, its column's name, or a letter from A."""
    baselines: bool = False
    """Also score, on the test (else validation) rows, the candidate number that is right most often in training."""


@dataclass(frozen=True, eq=False)
class MultipleChoice(RowTask):
    """Scores the candidates of a question together: they are one group, packed into the same batch.

    Attributes:
      config: the section `task`.
      context: settings and tokenizer.
      num_choices: candidates of each question; 0: whatever rows hold (a trained model is applied).
    """

    config: MultipleChoiceConfig
    context: Context
    num_choices: int = 0

    Config = MultipleChoiceConfig
    head = "multiple_choice"

    @classmethod
    def text_columns(cls, config: MultipleChoiceConfig) -> tuple[str, ...]:
        return (config.text, *([config.choices] if isinstance(config.choices, str) else config.choices))

    @classmethod
    def edit_row(cls, config: MultipleChoiceConfig, row: dict[str, Any], editor: Editor) -> dict[str, Any] | None:
        """The candidates stay: one word may be what tells them apart."""
        return edit_texts(row, (config.text,), editor)

    @classmethod
    def create(cls, config: MultipleChoiceConfig, context: Context, sources: TableSources | None) -> MultipleChoice:
        """Raises UserError for fewer than two candidates, a missing column, and settings that do not apply."""
        if context.label_smoothing:
            raise UserError("train.label_smoothing: not for multiple choice; leave it out")
        if not isinstance(config.choices, str):
            if len(config.choices) < 2:
                raise UserError(f"task.choices: expected at least two columns, found {len(config.choices)}")
        train = None if sources is None else sources.tables.get("train")
        if train is not None:
            for column in (*cls.text_columns(config), config.label):
                train.require(column, key=config.key_of(column))
        if not isinstance(config.choices, str):
            return cls(config, context, len(config.choices))
        number = 0
        if train is not None:
            sizes = Counter(len(c) for row in train.rows if isinstance(c := row[config.choices], list))
            number = sizes.most_common(1)[0][0] if sizes else 0
        return cls(config, context, number)

    @property
    def num_outputs(self) -> int:
        return 1

    @property
    def fields(self) -> tuple[Field, ...]:
        return Field("token_types", "token"), Field("slot_positions", "position"), Field("labels", "slot")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return Metric("accuracy"), Metric("loss", higher_is_better=False)

    def examples(self, table: Table, *, labelled: bool, key: str) -> Examples:
        data, config = self.context.data, self.config
        table.require(*self.text_columns(config), *((config.label,) if labelled else ()), key=key)
        columns = (config.text,) if isinstance(config.choices, str) else self.text_columns(config)
        cells = TextCells(table, columns, allow_empty=not labelled)
        bad = BadRows(table, data, labelled=labelled, key=key)
        read: dict[int, tuple[str, list[str]]] = {}
        labels: list[int | None] = [None] * len(table.rows)
        for i, row in enumerate(table.rows):
            try:
                question, *choices = cells.read(i)
                if isinstance(config.choices, str):
                    choices = self._list(row[config.choices], f"{table.where(i)}: {config.choices}", blank=not labelled)
                labels[i] = self._label(row[config.label], len(choices), table.where(i)) if labelled else None
                read[i] = question, choices
            except UserError as error:
                bad.add(i, error)
        bad.say()
        firsts = [question for question, choices in read.values() for _ in choices]
        seconds = [choice for _, choices in read.values() for choice in choices]
        encode, kept = self.context.tokenizer.encode, self.context.token_ids
        encoded = iter(encode(firsts, seconds, max_length=data.max_length, ids=kept))
        made: list[Example] = []
        truncated = 0
        for i, (_, choices) in read.items():
            for number in range(len(choices)):
                [part] = next(encoded)
                truncated += part.truncated
                pooled = 0 if self.context.pool == "first" else len(part.ids) - 1
                arrays = {
                    "tokens": part.ids,
                    "token_types": part.type_ids,
                    "slot_positions": np.asarray(pooled, np.int32),
                    "labels": np.asarray(labels[i] == number, np.int32),
                }
                made.append(Example(arrays, i, group=i))
        if truncated:
            log.info("%s: %d of %d candidates longer than data.max_length=%d: cut", table.name, truncated, len(made),
                     data.max_length)  # fmt: skip
        return Examples(table, made, labels, {"truncated": truncated, "skipped": len(bad.errors)}, bad.errors)

    def _list(self, value: Any, where: str, *, blank: bool) -> list[str]:
        """The candidates in a cell; `blank`: whether one may be."""
        problem = ""
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            problem = f"expected a list of texts, found {value!r:.60}"
        elif len(value) < 2:
            problem = f"expected at least two candidates, found {len(value)}"
        elif self.num_choices and len(value) != self.num_choices:
            problem = f"expected {self.num_choices} candidates, as in other rows, found {len(value)}"
        elif not blank and (empty := next((i for i, text in enumerate(value) if not text.strip()), None)) is not None:
            problem = f"candidate {empty} is blank; expected a text"
        if problem:
            raise UserError(f"{where}: {problem}")
        return value

    def _label(self, value: Any, count: int, where: str) -> int:
        """The number of the right candidate."""
        config = self.config
        names = [] if isinstance(config.choices, str) else list(config.choices)
        text = value.strip() if isinstance(value, str) else ""
        if text in names:
            return names.index(text)
        letter = ord(text.upper()) - ord("A") if len(text) == 1 and text.isascii() and text.isalpha() else -1
        place = as_number(value)
        number = int(place) if place is not None and place.is_integer() else letter
        if not 0 <= number < count:
            expected = f"0 to {count - 1}, A to {chr(ord('A') + count - 1)}" + (
                f", or {', '.join(names)}" * bool(names)
            )
            raise UserError(f"{where}: {config.label}={value!r:.60}: expected the right candidate, {expected}")
        return number

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return multiple_choice_loss(outputs, batch)

    def measure(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Outputs:
        return Outputs(super().measure(outputs, batch).sums, slots={"score": outputs})

    def decode(self, example: Example, outputs: Mapping[str, np.ndarray]) -> float:
        return float(outputs["score"][0])

    def answer(self, row: Mapping[str, Any], parts: Sequence[tuple[Example, float]]) -> np.ndarray:
        """float32 [candidates]."""
        return np.asarray([score for _, score in parts], np.float32)

    def prediction(self, row: Mapping[str, Any], kept: np.ndarray) -> dict[str, Any]:
        """{"label", "scores"}: the number, or the column, of the likeliest candidate, and the probability of each."""
        chances = softmax(kept.astype(np.float64)).tolist()
        best = int(kept.argmax())
        if isinstance(self.config.choices, str):
            return {"label": best, "scores": chances}
        return {"label": self.config.choices[best], "scores": dict(zip(self.config.choices, chances, strict=True))}

    def scores(self, sums: Mapping[str, float], answers: Sequence[Answer], dataset: Dataset) -> dict[str, float]:
        right = [int(answer.kept.argmax()) == answer.label for answer in answers if answer.label is not None]
        return {"accuracy": float(np.mean(right)) if right else 0.0, **super().scores(sums, answers, dataset)}

    def baselines(self, train: Dataset, test: Dataset) -> dict[str, dict[str, float]]:
        split, other = train.examples(), test.examples()
        if not self.config.baselines or split is None or other is None:
            return {}
        most = Counter(label for label in split.labels if label is not None).most_common(1)[0][0]
        return {"most_frequent": {"accuracy": float(np.mean([y == most for y in other.labels if y is not None]))}}

    def describe(self) -> dict[str, Any]:
        task = {"kind": self.config.kind, "text": self.config.text, "label": self.config.label}
        return {"problem": "multiple choice", "label_names": [], "task": {**task, "choices": self.num_choices}}

    def show(self, batch: Batch) -> list[str]:
        def describe(slot: int, inside: np.ndarray) -> str:
            right = " (right)" if batch["labels"][0, slot] else ""
            return f"{right}: {self.context.tokenizer.decode(batch['tokens'][0][inside], skip_special_tokens=False)}"

        return show_first_row(batch, "candidate", describe)

    def report(self, answers: Sequence[Answer]) -> list[ReportSection]:
        """The questions whose right candidate was found least likely."""
        labelled = [(i, a, softmax(a.kept.astype(np.float64))) for i, a in enumerate(answers, 1) if a.label is not None]
        wrong = [(i, a, p) for i, a, p in labelled if int(p.argmax()) != a.label]
        rows = []
        for i, answer, chances in sorted(wrong, key=lambda item: item[2][item[1].label])[:_MISTAKES]:
            texts = self._texts(answer.row)
            best = int(chances.argmax())
            rows.append(
                [i, excerpt(str(answer.row[self.config.text])), excerpt(texts[answer.label]), excerpt(texts[best]),
                 float(chances[answer.label])]
            )  # fmt: skip
        if not rows:
            return []
        columns = ["Line", "Question", "Right", "Chosen", "P(right)"]
        note = "Whose right candidate was least likely; line numbers are those of the split's file in predictions/."
        return [ReportSection("Worst mistakes", "texts", {"columns": columns, "rows": rows}, note)]

    def _texts(self, row: Mapping[str, Any]) -> list[str]:
        choices = self.config.choices
        return [str(text) for text in (row[choices] if isinstance(choices, str) else [row[name] for name in choices])]
