"""A finished run scored once more: on a split of its config, or on a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jaxlm.config.loading import load_config
from jaxlm.config.schema import Config
from jaxlm.data.config import SourceConfig
from jaxlm.data.sources.cleaning import clean_tables
from jaxlm.data.sources.sources import load
from jaxlm.errors import UserError
from jaxlm.inference.evaluator import score
from jaxlm.inference.predict import load_predictor
from jaxlm.parallel import processes
from jaxlm.setup.setup import make_setup
from jaxlm.training.loaders import make_evaluator

_KEPT = {"columns", "rename", "quoting", "encoding", "format", "documents"}
"""How the run's own files are read, so that a file of the same kind is read likewise."""


def evaluate_run(
    run: str, *, split: str | None = None, data: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Scores a finished run's model on a split of its config, or on a file.

    Args:
      split: train, validation or test; default: test where the config has it, else validation.
      data: a file instead of a split; read with the settings of the run's validation (else train) source.
      overrides: key=value changes of the run's config, for instance where data lies elsewhere today.
    Raises:
      UserError: no such run, split or file.
    """
    path = Path(run).expanduser() / "config.yaml"
    if not path.is_file():
        raise UserError(f"--run {run}: no config.yaml; expected a run directory (for a bare checkpoint, use predict)")
    if split and data:
        raise UserError("expected --split or --data, not both")
    config = load_config(path, overrides)
    if data is not None:
        split, source, key = "test", _file_like(config, data), "--data"
    else:
        split = split or ("test" if config.data.test is not None else "validation")
        source, key = getattr(config.data, split), f"data.{split}"
        if source is None:
            raise UserError(f"--split {split}: the run's config has no {key}")
    score_run = _score_rows if config.task.kind == "classification" else _score_corpus
    return score_run(run, config, split, source, key)


def _file_like(config: Config, data: str) -> SourceConfig:
    like = config.data.validation or config.data.train
    settings = {} if like is None else like.model_dump(include=_KEPT)
    if Path(data).suffix != Path(str(like and like.path)).suffix:
        settings.pop("format", None)
    return SourceConfig(path=data, **settings)


def _score_rows(run: str, config: Config, split: str, source: SourceConfig, key: str) -> dict[str, float]:
    predictor = load_predictor(run)
    table = load(source, key=key, split=split, on_bad_row=config.data.on_bad_row)
    cleaned, _ = clean_tables({"test": table}, predictor.task.text_columns, config.data.clean)
    examples = predictor.examples(cleaned["test"], labelled=True)
    processes.assert_same(f"the rows of {key}", lambda: json.dumps(table.rows, default=str))
    with processes.collective_section():
        outputs = predictor.evaluator.outputs(predictor.params, examples.examples, len(table.rows))
    return score(predictor.task, outputs, examples)


def _score_corpus(run: str, config: Config, split: str, source: SourceConfig, key: str) -> dict[str, float]:
    trained = {"init": run, "family": None, "preset": None, "config": {}, "tokenizer": None, "train_tokenizer": None}
    model = config.model.model_copy(update=trained)
    data = config.data.model_copy(update={"train": None, "validation": None, "test": None, split: source})
    setup = make_setup(config.model_copy(update={"model": model, "data": data}), splits=(split,))
    corpora = [plan.corpus.fingerprint for plan in setup.splits[split].plans]
    processes.assert_same(f"the documents of {key}", lambda: json.dumps(corpora))
    with processes.collective_section():
        params, _ = setup.init_params()
        return make_evaluator(setup).evaluate(params, setup.splits[split]).scores
