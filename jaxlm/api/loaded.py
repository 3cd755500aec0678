"""`jaxlm.load`: a trained model that answers rows, embeds and writes texts; `jaxlm predict` streams through it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, overload

import numpy as np

from jaxlm.api.entry import entry
from jaxlm.api.settings import as_overrides, rows_of
from jaxlm.data.sources.text_files import Record
from jaxlm.errors import UserError
from jaxlm.inference.predict import Predictor, open_predictor, predict_stream
from jaxlm.local_paths import expand

Row: TypeAlias = "str | Mapping[str, Any] | Sequence[str]"
"""A text, a row by its columns, or the texts of its columns in their order (of tagging: its words)."""
OnBadRow: TypeAlias = Literal["stop", "error"]
ROWS = "the input"
"""What rows that come from no file are called in errors."""


class LoadedModel:
    """A trained model, ready to answer.

    What it compiles is kept: batches of later calls are rounded up to the shapes of earlier ones.

    Args:
      predictor: how rows become answers.
    """

    def __init__(self, predictor: Predictor, name: str) -> None:
        self.predictor = predictor
        self.name = name

    @property
    def task(self) -> str:
        """The kind of its task, as `task.kind` names it."""
        return self.predictor.trained.setup.config.task.kind

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows must have."""
        setup = self.predictor.trained.setup
        return setup.task.input_columns(setup.config.task, ())

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels; () where it predicts none."""
        return tuple(self.predictor.trained.setup.task.describe().get("label_names") or ())

    @overload
    def predict(self, rows: str | Mapping[str, Any]) -> dict[str, Any]: ...
    @overload
    def predict(self, rows: Iterable[Row]) -> list[dict[str, Any]]: ...
    def predict(self, rows: str | Mapping[str, Any] | Iterable[Row]) -> dict[str, Any] | list[dict[str, Any]]:
        """Answers rows, in their order.

        Args:
          rows: texts or rows by their columns, or a table of pandas or polars; or a single one.
        Returns:
          For each row what `jaxlm predict` writes as its `prediction`, for instance {"label", "scores"}; of a model
          loaded with `on_bad_row="error"`, {"error": why} for one that cannot be answered. For a single one, its own.
        Raises:
          jaxlm.errors.UserError: a row that cannot be answered.
        """
        if isinstance(rows, str | Mapping):
            single: Any = rows
            return self._answers([single])[0]
        return self._answers(rows)

    def embed(self, texts: Iterable[Row]) -> np.ndarray:
        """Returns the vectors of texts, float32 [texts, D], in their order.

        Raises:
          jaxlm.errors.UserError: a model whose task is not `embedding`; a text that cannot be read.
        """
        if not self.predictor.trained.setup.task.vectors:
            raise UserError(f"{self.name}: a model of task {self.task} gives no vectors; use predict")
        answers = self._every_answer(texts)
        return np.asarray([answer["vector"] for answer in answers], np.float32)

    def generate(self, prompts: Iterable[Row]) -> list[str]:
        """Returns what the model writes for each prompt or source text, by the settings of `generation`.

        Raises:
          jaxlm.errors.UserError: a model that writes nothing; a prompt that is too long or cannot be read.
        """
        if self.predictor.trained.setup.task.generation is None:
            raise UserError(f"{self.name}: a model of task {self.task} writes no text; use predict")
        return [answer["text"] for answer in self._every_answer(prompts)]

    def stream(self, records: Iterable[Record], name: str) -> Iterator[dict[str, Any]]:
        """Yields rows as `jaxlm predict` writes them, with `prediction` or `error`.

        Args:
          records: rows with their lines.
          name: their source, for errors.
        """
        return predict_stream(self.predictor, records, name)

    def _answers(self, rows: Iterable[Row]) -> list[dict[str, Any]]:
        rows = rows_of(rows)
        if not isinstance(rows, Iterable):
            raise UserError(f"{ROWS}: expected a text, a row, or a list of them, found {type(rows).__name__}")
        records = ((number, self._row(row, number)) for number, row in enumerate(rows, 1))
        found = self.stream(records, ROWS)
        return [row["prediction"] if "prediction" in row else {"error": row["error"]} for row in found]

    def _every_answer(self, rows: Iterable[Row]) -> list[dict[str, Any]]:
        """The answers to several rows, whatever `on_bad_row` says.

        Raises:
          UserError: a row that cannot be answered; a single text in place of a list.
        """
        if isinstance(rows, str | Mapping):
            raise UserError(f"{ROWS}: expected a list of texts, found a single one")
        answers = self._answers(rows)
        if error := next((answer["error"] for answer in answers if "error" in answer), None):
            raise UserError(error)
        return answers

    def _row(self, row: Any, number: int) -> dict[str, Any]:
        """A row by its columns, of a `Row`.

        Raises:
          UserError: it is none.
        """
        if isinstance(row, Mapping):
            return {str(key): value for key, value in row.items()}
        setup = self.predictor.trained.setup
        columns = setup.task.input_columns(setup.config.task, ("text",) if isinstance(row, str) else ())
        listed = ", ".join(columns)
        if isinstance(row, str) and len(columns) == 1:
            return {columns[0]: row}
        if isinstance(row, list | tuple):
            if len(columns) == 1:
                return {columns[0]: list(row)}
            if len(columns) == len(row):
                return dict(zip(columns, row, strict=True))
        found = f"{len(row)} values" if isinstance(row, list | tuple) else type(row).__name__
        raise UserError(f"{ROWS}, row {number}: expected a mapping with the columns {listed}; found {found}")

    def __repr__(self) -> str:
        setup = self.predictor.trained.setup
        shown = ", ".join(self.labels[:12]) + (" ..." if len(self.labels) > 12 else "")
        labels = f", labels {shown}" if shown else ""
        return (
            f"LoadedModel({self.name!r}): {setup.model.family.name}, {setup.model.num_parameters:,} parameters, "
            f"task {self.task}, reads {', '.join(self.columns)}{labels}"
        )


def load(
    model: str | os.PathLike[str],
    *,
    text: str | Sequence[str] | None = None,
    on_bad_row: OnBadRow = "stop",
    **overrides: Any,
) -> LoadedModel:
    """Opens a finished run, an HF-format directory or a hub id.

    Args:
      text: text column, or columns, of a model that no run made; absent: the task's default.
      on_bad_row: "stop": a row that cannot be answered raises; "error": its answer is {"error": why}.
      overrides: keys of `mesh` and `generation`, and `model.dtype` and the like, which say how to compute.
    Raises:
      jaxlm.errors.UserError: no model there, or one that answers no rows; another override.
    """
    with entry("predict", {"--run": "model"}):
        opened = open_model(os.fspath(model), text=text, on_bad_row=on_bad_row, overrides=as_overrides(overrides))
        evaluator = opened.predictor.trained.evaluator
        evaluator = replace(evaluator, layout=replace(evaluator.layout, few_shapes=True))
        return LoadedModel(Predictor(replace(opened.predictor.trained, evaluator=evaluator)), opened.name)


def open_model(
    name: str,
    *,
    text: str | Sequence[str] | None = None,
    on_bad_row: OnBadRow = "error",
    overrides: Sequence[str] = (),
) -> LoadedModel:
    """Opens a model as `load` does, with overrides of the command line, and shapes that suit one long input."""
    if on_bad_row not in ("stop", "error"):
        raise UserError(f"on_bad_row={on_bad_row!r}: expected 'stop' or 'error'")
    policy = "skip" if on_bad_row == "error" else "stop"
    return LoadedModel(open_predictor(expand(name), text=text, on_bad_row=policy, overrides=overrides), name)
