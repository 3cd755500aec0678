"""`jaxlm.evaluate`: a finished run scored once more, as the command of this name does it, or on rows of a program."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxlm.api.entry import entry
from jaxlm.api.settings import as_overrides, plain, rows_of
from jaxlm.errors import UserError
from jaxlm.inference.evaluate import ROWS, Rows, evaluate_run
from jaxlm.inference.slices import Slicing
from jaxlm.local_paths import check_local, expand

_NAMES = {"--run": "run", "--split": "split", "--data": "data", ROWS: "data"}


def evaluate(
    run: str | os.PathLike[str],
    *,
    split: str | None = None,
    data: str | os.PathLike[str] | Iterable[Mapping[str, Any]] | None = None,
    slices: Sequence[str] = (),
    resamples: int = 200,
    **overrides: Any,
) -> dict[str, Any]:
    """Scores a finished run's model on a split of its config, on a labelled file, or on labelled rows.

    Args:
      run: a run directory, or what `jaxlm.finetune` returned.
      split: train, validation or test; default: test where the config has it, else validation.
      data: instead of a split a file, read as the run's own, or rows: mappings with the columns that the task reads.
      slices: columns by whose values rows are grouped and scored apart.
      resamples: of the bootstrap behind the intervals of `slices`; 0: none.
      overrides: keys of the run's config, for instance where data lies today: `data={"test": {"path": "new.csv"}}`.
    Returns:
      The scores by name; with `slices` also `slices`, the scores of each group.
    Raises:
      jaxlm.errors.UserError: no such run, split or file; a row that the task cannot read; an override that would
        change the model.
    """
    with entry("evaluate", _NAMES):
        return evaluate_run(
            expand(os.fspath(run)),
            split=split,
            data=None if data is None else _file_or_rows(data),
            slicing=Slicing(list(slices), resamples) if slices else None,
            overrides=as_overrides(overrides),
        )


def _file_or_rows(data: Any) -> str | Rows:
    """What `evaluate_run` takes.

    Raises:
      UserError: what is neither a path nor rows; a path of another machine.
    """
    if isinstance(data, str | os.PathLike):
        file = os.fspath(data)
        check_local(file, "data")
        return expand(file)
    data = rows_of(data)
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise UserError(f"data: expected a file, or a list of rows (mappings), found {type(data).__name__}")
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(data, 1):
        if not isinstance(row, Mapping):
            raise UserError(f"data, row {number}: expected a mapping of columns to values, found {type(row).__name__}")
        rows.append(plain(row))
    if not rows:
        raise UserError("data: no rows; expected at least one")
    return rows
