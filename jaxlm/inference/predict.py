"""Rows in, rows with predictions out: `jaxlm predict`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from jaxlm.data.sources.cleaning import clean_text
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.inference.trained import TrainedModel, checkpoint_config, open_trained, run_config, with_samples
from jaxlm.tasks import TASKS

CHUNK = 4096
"""Rows read, packed and written at a time: enough to pack well, little to hold."""


@dataclass(frozen=True)
class Predictor:
    """A trained model, ready to answer rows."""

    trained: TrainedModel

    def predict(self, rows: Sequence[dict[str, Any]], name: str, first: int = 1) -> list[dict[str, Any]]:
        """Returns the rows, each with `prediction`, in the same order.

        Args:
          name, first: the rows' source and the number of the first, for errors.
        Raises:
          UserError: a row without a text.
        """
        setup = self.trained.setup
        task, clean = setup.task, setup.config.data.clean
        texts = task.text_columns(setup.config.task)
        for line, row in enumerate(rows, first):
            for column in texts:
                if column not in row:
                    raise UserError(f"{name}, row {line}: no column {column!r}; it has: {', '.join(row) or 'none'}")
        columns = tuple(dict.fromkeys(key for row in rows for key in row))
        cleaned = tuple(
            {**row, **{c: clean_text(text, clean) for c in texts if isinstance(text := row[c], str)}} for row in rows
        )
        lines = tuple(range(first, first + len(rows)))
        dataset = task.dataset(Table(name, columns, cleaned, lines), labelled=False, key="the input")
        answers = self.trained.evaluator.answers(self.trained.params, setup.frozen, dataset)
        predictions = {i: task.prediction(answer.row, answer.kept) for i, answer in answers}
        return [{**row, "prediction": predictions[i]} for i, row in enumerate(rows)]


def open_predictor(
    name: str, *, text: str | Sequence[str] | None = None, samples: Mapping[str, Any] | None = None
) -> Predictor:
    """Opens a finished run, an HF-format directory or a hub id, whatever it predicts.

    Args:
      text: text column(s) of a model that no run made; None: the task's default.
      samples: changes of `task.samples` for a model that writes: tokens, temperature, top_k, top_p.
    Raises:
      UserError: no model there, or one that predicts nothing yet.
    """
    config = run_config(name)
    if config is None:
        config = checkpoint_config(name, text)
    elif not TASKS[config.task.kind].predicts:
        raise UserError(
            f"--run {name}: a pretraining run of kind {config.task.kind} predicts nothing by itself; fine-tune it "
            f"(model.init={name})"
        )
    # Rows are answered one by one: none may be skipped.
    data = config.data.model_copy(update={"on_bad_row": "stop"})
    return Predictor(open_trained(name, with_samples(config.model_copy(update={"data": data}), samples or {})))


def predict_stream(predictor: Predictor, rows: Iterable[dict[str, Any]], name: str) -> Iterator[str]:
    """Yields one JSON line per input row, chunk by chunk."""
    rows, first = iter(rows), 1
    while chunk := list(islice(rows, CHUNK)):
        for row in predictor.predict(chunk, name, first):
            yield json.dumps(row, ensure_ascii=False, default=str) + "\n"
        first += len(chunk)
