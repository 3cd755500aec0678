"""`jaxlm.evaluate`: a finished run scored once more, as the command of this name does it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from jaxlm.api.entry import entry
from jaxlm.api.settings import as_overrides
from jaxlm.inference.evaluate import evaluate_run
from jaxlm.inference.slices import Slicing
from jaxlm.local_paths import check_local, expand


def evaluate(
    run: str | os.PathLike[str],
    *,
    split: str | None = None,
    data: str | os.PathLike[str] | None = None,
    slices: Sequence[str] = (),
    resamples: int = 200,
    **overrides: Any,
) -> dict[str, Any]:
    """Scores a finished run's model on a split of its config, or on a labelled file.

    Args:
      run: a run directory, or what `jaxlm.finetune` returned.
      split: train, validation or test; default: test where the config has it, else validation.
      data: a file instead of a split, read as the run's own.
      slices: columns by whose values rows are grouped and scored apart.
      resamples: of the bootstrap behind the intervals of `slices`; 0: none.
      overrides: keys of the run's config, for instance where data lies today: `data={"test": {"path": "new.csv"}}`.
    Returns:
      The scores by name; with `slices` also `slices`, the scores of each group.
    Raises:
      jaxlm.errors.UserError: no such run, split or file; an override that would change the model.
    """
    with entry("evaluate"):
        name, file = os.fspath(run), None if data is None else os.fspath(data)
        if file is not None:
            check_local(file, "data")
        return evaluate_run(
            expand(name),
            split=split,
            data=None if file is None else expand(file),
            slicing=Slicing(list(slices), resamples) if slices else None,
            overrides=as_overrides(overrides),
        )
