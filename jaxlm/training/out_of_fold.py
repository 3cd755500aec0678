"""The out-of-fold predictions of a cross-validation: each training row, answered by the run that held it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config.schema import Config
from jaxlm.data.examples.folds import assign_folds
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.inference.output import answered, to_jsonl
from jaxlm.run.run_dir import PREDICTIONS, RunDir
from jaxlm.setup.setup import TOKENS
from jaxlm.tasks import TASKS
from jaxlm.tasks.records import Request

OUT_OF_FOLD = f"{PREDICTIONS}/out_of_fold.jsonl"


class HeldOutRow(NamedTuple):
    """A training row with the prediction of the run that had not seen it.

    Attributes:
      place: its index in the training table.
      fold: number of the fold that it was in.
    """

    place: int
    fold: int
    prediction: dict[str, Any]


def write_out_of_fold(directory: RunDir, config: Config, names: tuple[str, ...]) -> tuple[Table, list[HeldOutRow]]:
    """Writes predictions/out_of_fold.jsonl: the training rows in their order, each with `prediction` and `fold`.

    Rows that were skipped, or never held out, are not in it.

    Args:
      directory: of the cross-validation.
      names: of its runs, that of fold 0 first.
    Returns:
      The training rows as they were read and cleaned, and their predictions.
    Raises:
      UserError: the training rows are not what the runs have read.
    """
    table, folds = _training_rows(config, len(names))
    found: list[HeldOutRow] = []
    for fold, name in enumerate(names):
        path = directory.path / name / PREDICTIONS / "validation.jsonl"
        if not path.is_file():
            raise UserError(f"{path}: no such file; bring it back, or move {path.parents[1]} away to run it again")
        found += _match(table, [i for i, f in enumerate(folds.tolist()) if f == fold], fold, path)
    found.sort()
    rows = (answered(table.rows[row.place], prediction=row.prediction, fold=row.fold) for row in found)
    directory.write_text(OUT_OF_FOLD, "".join(to_jsonl(rows)))
    return table, found


def _training_rows(config: Config, num_folds: int) -> tuple[Table, Any]:
    """The training rows, cleaned, and the fold of each."""
    task = TASKS[config.task.kind]
    # Copies are made after rows are held out.
    data = config.data.model_copy(update={"validation": None, "augment": None})
    cache = Path(config.data.token_cache or Path(config.logging.directory) / TOKENS)
    sources = task.open(config.task, Request(data, ("train", "test"), cache, config.seed))
    assert isinstance(sources, TableSources)
    columns = task.text_columns(config.task), task.label_columns(config.task)
    table = sources.tables["train"]
    return table, assign_folds(table, *columns, folds=num_folds, seed=config.seed)


def _match(table: Table, indices: list[int], fold: int, path: Path) -> list[HeldOutRow]:
    """Finds the row of each prediction of a fold; both stand in the order of the table."""
    found: list[HeldOutRow] = []
    places = iter(indices)
    for line in path.read_text(encoding="utf-8").split("\n"):
        if not line:
            continue
        predicted = json.loads(line)
        prediction = predicted.pop("prediction")
        index = next((i for i in places if _as_written(table.rows[i]) == predicted), None)
        if index is None:
            raise UserError(
                f"{path}: a row of it is not where it was in {table.name}, which has changed since; bring the old rows "
                "back, or start over with train.restart=true"
            )
        found.append(HeldOutRow(index, fold, prediction))
    return found


def _as_written(row: dict[str, Any]) -> dict[str, Any]:
    return json.loads(next(iter(to_jsonl([answered(row)]))))
