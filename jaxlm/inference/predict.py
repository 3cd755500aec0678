"""Rows in, rows with predictions out: `jaxlm predict`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from jaxlm.config.loading import override_config
from jaxlm.data.config import CleanConfig
from jaxlm.data.examples.dataset import RowDataset
from jaxlm.data.sources.cleaning import clean_text
from jaxlm.data.sources.table import Table, place
from jaxlm.data.sources.text_files import BadRow, Record
from jaxlm.errors import UserError
from jaxlm.inference.output import OURS, answered, kept_name
from jaxlm.inference.trained import (
    COMPUTE_KEYS,
    TrainedModel,
    asks_for_mesh,
    checkpoint_config,
    open_trained,
    run_config,
)
from jaxlm.setup.generation_checks import room_for_prompt
from jaxlm.tasks import TASKS

log = logging.getLogger("jaxlm")

CHUNK = 4096
"""Rows read, packed and written at a time: enough to pack well, little to hold."""


@dataclass(frozen=True)
class Predictor:
    """A trained model, ready to answer rows."""

    trained: TrainedModel

    def predict(self, rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
        """Returns the rows, each with `prediction` or, where it cannot be answered, with `error`; in the same order.

        Args:
          name: the rows' source, for errors.
        Raises:
          UserError: no row has the columns that the task reads; or a bad row, where `data.on_bad_row` is stop.
        """
        return list(self.answer([(number, row) for number, row in enumerate(rows, 1)], name))

    def answer(self, records: Sequence[Record], name: str, first: int = 1) -> Iterator[dict[str, Any]]:
        """As `predict`, of rows with their lines, some of which may be bad.

        Args:
          first: number of the first.
        """
        setup = self.trained.setup
        task, data = setup.task, setup.config.data
        known = tuple(dict.fromkeys(key for _, row in records if not isinstance(row, BadRow) for key in row))
        texts = task.input_columns(setup.config.task, known)
        errors: dict[int, str] = {}
        usable: list[int] = []
        for i, (line, row) in enumerate(records):
            problem = row.problem if isinstance(row, BadRow) else _missing_columns(row, texts)
            if problem is None:
                usable.append(i)
                continue
            errors[i] = f"{place(name, first + i, line)}: {problem}"
            if data.on_bad_row == "stop" or not isinstance(row, BadRow) and first == 1 and not _any_has(records, texts):
                raise UserError(errors[i])
        predictions: dict[int, Any] = {}
        if usable:
            table = make_table([(first + i, *records[i]) for i in usable], name, texts, data.clean)
            dataset = self.without_long_prompts(task.dataset(table, labelled=False, key="the input"))
            errors |= {usable[i]: message for i, message in dataset.split.errors.items()}
            answers = self.trained.evaluator.answers(*self.trained.parts, dataset)
            predictions = {usable[i]: task.prediction(answer.row, answer.kept) for i, answer in answers}
        for i, (_, row) in enumerate(records):
            known = {} if isinstance(row, BadRow) else row
            yield answered(known, error=errors[i]) if i in errors else answered(known, prediction=predictions[i])

    def without_long_prompts(self, dataset: RowDataset) -> RowDataset:
        """Takes out prompts that leave no room for what is to be written after them."""
        task, model, split = self.trained.setup.task, self.trained.setup.model, dataset.split
        if task.generation is None:
            return dataset
        room = room_for_prompt(model, task.generation)
        long = {e.row: len(e.prompt) for e in split.examples if e.prompt is not None and len(e.prompt) > room > 0}
        settings = task.generation
        reason = f"so that {settings.max_new_tokens or 1} more fit the model (generation.max_new_tokens=N writes fewer)"
        if settings.max_new_tokens is None and (settings.max_length or 0) < model.config.max_positions:
            reason = (
                f"since generation.max_length={settings.max_length} counts prompt and text together "
                "(generation.max_new_tokens=N counts what is written alone)"
            )
        errors = {
            row: f"{split.table.where(row)}: {length} tokens; expected at most {room}, {reason}"
            for row, length in long.items()
        }
        if errors and self.trained.setup.config.data.on_bad_row == "stop":
            raise UserError(next(iter(errors.values())))
        kept = [example for example in split.examples if example.row not in long]
        return RowDataset(replace(split, examples=kept, errors={**split.errors, **errors}), task.fields)


def _missing_columns(row: Mapping[str, Any], texts: Sequence[str]) -> str | None:
    absent = [column for column in texts if column not in row]
    return f"no column {absent[0]!r}; it has: {', '.join(row) or 'none'}" if absent else None


def _any_has(records: Sequence[Record], texts: Sequence[str]) -> bool:
    return any(not isinstance(row, BadRow) and _missing_columns(row, texts) is None for _, row in records)


def make_table(rows: Sequence[tuple[int, int, Any]], name: str, texts: Sequence[str], clean: CleanConfig) -> Table:
    """The rows (number, line, row) with their texts cleaned."""
    columns = tuple(dict.fromkeys(key for _, _, row in rows for key in row))
    cleaned = tuple(
        {**dict.fromkeys(columns), **row, **{c: clean_text(row[c], clean) for c in texts if isinstance(row[c], str)}}
        for _, _, row in rows
    )
    lines, numbers = tuple(line for _, line, _ in rows), tuple(number for number, _, _ in rows)
    return Table(name, columns, cleaned, lines, numbers=numbers)


def open_predictor(
    name: str,
    *,
    text: str | Sequence[str] | None = None,
    on_bad_row: Literal["stop", "skip"] = "skip",
    overrides: Sequence[str] = (),
) -> Predictor:
    """Opens a finished run, an HF-format directory or a hub id, whatever it predicts.

    Args:
      text: text column(s) of a model that no run made; None: the task's default.
      on_bad_row: "skip": a row that cannot be answered gets an `error`; "stop": it is an error.
      overrides: key=value of the sections `mesh` and `generation`, or of `COMPUTE_KEYS`.
    Raises:
      UserError: no model there, or one that predicts nothing yet; another override; a mesh that does not fit.
    """
    for override in overrides:
        of_section = re.match(r"\s*(mesh|generation)\s*[.=]", override)
        if not of_section and not override.startswith(COMPUTE_KEYS):
            raise UserError(
                f"override '{override}': predictions follow from the run; expected a key of mesh or generation, or one "
                f"of {', '.join(COMPUTE_KEYS)}"
            )
    config = run_config(name, overrides)
    if config is None:
        config = override_config(checkpoint_config(name, text), overrides)
    elif not TASKS[config.task.kind].predicts:
        raise UserError(
            f"--run {name}: a pretraining run of kind {config.task.kind} predicts nothing by itself; fine-tune it "
            f"(model.init={name})"
        )
    data = config.data.model_copy(update={"on_bad_row": on_bad_row})
    changed = config.model_copy(update={"data": data})
    return Predictor(open_trained(name, changed, keep_mesh=asks_for_mesh(overrides)))


def predict_stream(predictor: Predictor, rows: Iterable[Record], name: str) -> Iterator[dict[str, Any]]:
    """Yields each row with its answer, chunk by chunk; says at the end how many have none."""
    records, first = iter(rows), 1
    bad, first_error = 0, ""
    said: set[str] = set()
    while chunk := list(islice(records, CHUNK)):
        for column in OURS:
            row = next((row for _, row in chunk if not isinstance(row, BadRow) and column in row), None)
            if row is not None and column not in said:
                said.add(column)
                log.warning("%s: its column %r is called %r in the output", name, column, kept_name(column, row))
        for row in predictor.answer(chunk, name, first):
            if "error" in row:
                bad, first_error = bad + 1, first_error or row["error"]
            yield row
        first += len(chunk)
    if first == 1:
        log.warning("%s: 0 rows, so that there is nothing to answer", name)
    if bad:
        log.warning("%s: %d of %d rows could not be answered; their lines have an `error`; the first: %s",
                    name, bad, first - 1, first_error)  # fmt: skip
