"""A trained model applied to rows: from a run directory or any HF-format directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax

from jaxlm.config import Config, ModelConfig
from jaxlm.config_data import DataConfig, SourceConfig
from jaxlm.config_tasks import ClassificationConfig
from jaxlm.configfile import load_config
from jaxlm.data.clean import clean_tables, clean_text
from jaxlm.data.sources import load
from jaxlm.data.table import Table
from jaxlm.data.tokenize import Tokenizer, load_tokenizer
from jaxlm.errors import UserError
from jaxlm.evaluate import Evaluator, prediction_rows, score
from jaxlm.hf.hub import resolve
from jaxlm.hf.io import Checkpoint, load_params
from jaxlm.models import Model
from jaxlm.prepare import make_compute
from jaxlm.sharding import make_mesh, make_rules
from jaxlm.tasks import Classification
from jaxlm.tasks.classification import Examples

CHUNK = 4096
"""Rows read, packed and written at a time: enough to pack well, little to hold."""


@dataclass(frozen=True)
class Predictor:
    """Model, tokenizer and task of a checkpoint, ready to compute."""

    task: Classification
    tokenizer: Tokenizer
    data: DataConfig
    params: Any
    evaluator: Evaluator
    config: Config | None
    """The run's config; None for a bare HF-format directory."""

    def examples(self, table: Table, *, labelled: bool) -> Examples:
        return self.task.examples(table, self.tokenizer, self.data, labelled=labelled, key="the input")

    def predict(self, rows: Sequence[dict[str, Any]], name: str, first: int = 1) -> list[dict[str, Any]]:
        """Returns the rows, each with `prediction`, in the same order.

        Args:
          name, first: the rows' source and the number of the first, for errors.
        """
        columns = tuple(dict.fromkeys(key for row in rows for key in row))
        lines = tuple(range(first, first + len(rows)))
        for row, line in zip(rows, lines, strict=True):
            for column in self.task.text_columns:
                if column not in row:
                    raise UserError(f"{name}, row {line}: no column {column!r}; it has: {', '.join(row) or 'none'}")
        cleaned = tuple({**row, **self._cleaned(row)} for row in rows)
        split = self.examples(Table(name, columns, cleaned, lines), labelled=False)
        outputs = self.evaluator.outputs(self.params, split.examples, len(rows))
        predicted = prediction_rows(self.task, outputs, split)
        return [{**row, "prediction": made["prediction"]} for row, made in zip(rows, predicted, strict=True)]

    def _cleaned(self, row: dict[str, Any]) -> dict[str, str]:
        texts = {column: row[column] for column in self.task.text_columns}
        return {column: clean_text(text, self.data.clean) for column, text in texts.items() if isinstance(text, str)}


def load_predictor(name: str, *, text: str | Sequence[str] | None = None) -> Predictor:
    """Opens a finished run, an HF-format directory or a hub id.

    Args:
      text: text column(s), where there is no run to name them; default "text".
    Raises:
      UserError: no model there; a checkpoint without a classification head.
    """
    run = Path(name).expanduser() / "config.yaml"
    config = load_config(run, ()) if run.is_file() else None
    checkpoint = Checkpoint(resolve(name, key="--run"))
    sizes = checkpoint.model_config
    if config is not None:
        task_config, data, model_config = config.task, config.data, config.model
    else:
        columns = text if isinstance(text, str) or text is None else (text[0], text[1])
        task_config = ClassificationConfig(text=columns) if columns else ClassificationConfig()
        data, model_config = DataConfig(max_length=min(512, sizes.max_positions)), ModelConfig()
    # Rows are answered one by one: none may be skipped, and rows of a serving input may repeat.
    data = data.model_copy(update={"on_bad_row": "stop"})
    task = Classification.from_hf(task_config, checkpoint.config)
    mesh = make_mesh("ddp")
    compute = make_compute(model_config, make_rules("ddp", mesh))
    model = Model(checkpoint.family, sizes, task.head, task.num_outputs, compute)
    imported = load_params(checkpoint, model, jax.random.key(0))
    if imported.initialised:
        raise UserError(
            f"--run {name}: the checkpoint has no trained head ({', '.join(imported.initialised)} are missing); "
            "fine-tune it first"
        )
    tokenizer = load_tokenizer(checkpoint.directory)
    evaluator = Evaluator(model, data, tokenizer.pad_id or 0)
    return Predictor(task, tokenizer, data, imported.params, evaluator, config)


def predict_stream(predictor: Predictor, rows: Iterable[dict[str, Any]], name: str) -> Iterator[str]:
    """Yields one JSON line per input row, chunk by chunk."""
    rows, first = iter(rows), 1
    while chunk := list(islice(rows, CHUNK)):
        for row in predictor.predict(chunk, name, first):
            yield json.dumps(row, ensure_ascii=False, default=str) + "\n"
        first += len(chunk)


def evaluate_run(
    run: str, *, split: str | None = None, data: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Scores a finished run's model on a split of its config, or on a labelled file.

    Args:
      split: train, validation or test; default: test where the config has it, else validation.
      data: a file instead of a split; read with the column settings of the run's validation (else train) source.
      overrides: key=value changes of the run's config, for instance where data lies elsewhere today.
    """
    path = Path(run).expanduser() / "config.yaml"
    if not path.is_file():
        raise UserError(f"--run {run}: no config.yaml; expected a run directory (for a bare checkpoint, use predict)")
    if split and data:
        raise UserError("expected --split or --data, not both")
    config = load_config(path, overrides)
    predictor = load_predictor(run)
    if data is not None:
        like = config.data.validation or config.data.train
        kept = {"columns", "rename", "quoting", "encoding", "format"}
        columns = {} if like is None else like.model_dump(include=kept)
        if Path(data).suffix != Path(str(like and like.path)).suffix:
            columns.pop("format", None)
        source, key = SourceConfig(path=data, **columns), "--data"
    else:
        split = split or ("test" if config.data.test is not None else "validation")
        source, key = getattr(config.data, split), f"data.{split}"
        if source is None:
            raise UserError(f"--split {split}: the run's config has no {key}")
    table = load(source, key=key, split=split or "test", on_bad_row=config.data.on_bad_row)
    cleaned, _ = clean_tables({"test": table}, predictor.task.text_columns, config.data.clean)
    examples = predictor.examples(cleaned["test"], labelled=True)
    outputs = predictor.evaluator.outputs(predictor.params, examples.examples, len(table.rows))
    return score(predictor.task, outputs, examples)
