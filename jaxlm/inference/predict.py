"""A trained model applied to rows: from a run directory or any HF-format directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax

from jaxlm.config.loading import load_config
from jaxlm.config.model import ModelConfig
from jaxlm.config.schema import Config
from jaxlm.data.config import DataConfig
from jaxlm.data.sources.cleaning import clean_text
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import HFCheckpoint, load_params
from jaxlm.hf.hub import find_model_dir
from jaxlm.inference.evaluator import Evaluator, prediction_rows
from jaxlm.inference.predict_text import TextPredictor
from jaxlm.models import Model
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules
from jaxlm.setup.model import make_compute
from jaxlm.tasks import Classification
from jaxlm.tasks.classification import ClassificationConfig, Examples
from jaxlm.tasks.language_model import SamplesConfig
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer

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


def open_predictor(
    name: str, *, text: str | Sequence[str] | None = None, samples: Mapping[str, Any] | None = None
) -> Predictor | TextPredictor:
    """Opens a finished run, an HF-format directory or a hub id, whatever it predicts.

    Args:
      text: text column(s), where there is no run to name them; default "text".
      samples: changes of `task.samples` for a model that writes: tokens, temperature, top_k, top_p.
    Raises:
      UserError: no model there, or one that predicts nothing yet.
    """
    run = Path(name).expanduser() / "config.yaml"
    config = load_config(run, ()) if run.is_file() else None
    checkpoint = HFCheckpoint(find_model_dir(name, key="--run"))
    writes = checkpoint.head == "causal_lm" if config is None else config.task.kind in ("causal_lm", "prefix_lm")
    if writes:
        return _open_text(config, checkpoint, text if isinstance(text, str) else "text", samples or {})
    if config is not None and config.task.kind != "classification":
        raise UserError(
            f"--run {name}: a pretraining run of kind {config.task.kind} predicts nothing by itself; fine-tune it "
            f"(model.init={name})"
        )
    return load_predictor(name, text=text)


def _open_text(
    config: Config | None, checkpoint: HFCheckpoint, column: str, changes: Mapping[str, Any]
) -> TextPredictor:
    settings = config.task.samples if config is not None else SamplesConfig()  # type: ignore[union-attr]
    compute = make_compute(config.model if config else ModelConfig(), Rules(make_mesh("ddp")))
    model = Model(checkpoint.family, checkpoint.model_config, "causal_lm", 0, compute)
    params = load_params(checkpoint, model, jax.random.key(0)).params
    settings = settings.model_copy(update={name: value for name, value in changes.items() if value is not None})
    prefix = config is not None and config.task.kind == "prefix_lm"
    return TextPredictor(model, params, load_tokenizer(checkpoint.directory), settings, column, prefix=prefix)


def load_predictor(name: str, *, text: str | Sequence[str] | None = None) -> Predictor:
    """Opens a classifier: a finished run, an HF-format directory or a hub id.

    Args:
      text: text column(s), where there is no run to name them; default "text".
    Raises:
      UserError: no model there; a checkpoint without a classification head.
    """
    run = Path(name).expanduser() / "config.yaml"
    config = load_config(run, ()) if run.is_file() else None
    checkpoint = HFCheckpoint(find_model_dir(name, key="--run"))
    sizes = checkpoint.model_config
    if config is not None and config.task.kind == "classification":
        task_config, data, model_config = config.task, config.data, config.model
    else:
        columns = text if isinstance(text, str) or text is None else (text[0], text[1])
        task_config = ClassificationConfig(text=columns) if columns else ClassificationConfig()
        data, model_config = DataConfig(max_length=min(512, sizes.max_positions)), ModelConfig()
    # Rows are answered one by one: none may be skipped, and rows of a serving input may repeat.
    data = data.model_copy(update={"on_bad_row": "stop"})
    task = Classification.from_hf(task_config, checkpoint.config)
    mesh = make_mesh("ddp")
    compute = make_compute(model_config, Rules(mesh))
    model = Model(checkpoint.family, sizes, task.head, task.num_outputs, compute)
    imported = load_params(checkpoint, model, jax.random.key(0))
    if imported.initialised:
        raise UserError(
            f"--run {name}: the checkpoint has no trained head ({', '.join(imported.initialised)} are missing); "
            "fine-tune it first"
        )
    tokenizer = load_tokenizer(checkpoint.directory)
    evaluator = Evaluator(model, task, data, tokenizer.pad_id or 0)
    return Predictor(task, tokenizer, data, imported.params, evaluator, config)


def predict_stream(predictor: Predictor | TextPredictor, rows: Iterable[dict[str, Any]], name: str) -> Iterator[str]:
    """Yields one JSON line per input row, chunk by chunk."""
    rows, first = iter(rows), 1
    while chunk := list(islice(rows, CHUNK)):
        for row in predictor.predict(chunk, name, first):
            yield json.dumps(row, ensure_ascii=False, default=str) + "\n"
        first += len(chunk)
