"""The folders of a checkpoint directory: which steps are complete, and removal of what a killed or failed save left."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import orbax.checkpoint as ocp

from jaxlm.errors import RunFailure
from jaxlm.training import manifest

log = logging.getLogger(__name__)


def step_numbers(directory: Path) -> list[int]:
    """Returns the steps that have a folder, complete or not, ascending; not the step that is being written."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal() and path.is_dir())


def committed_steps(directory: Path) -> list[int]:
    """Returns the steps whose folder has a manifest, ascending."""
    return [step for step in step_numbers(directory) if (directory / str(step) / manifest.FILE).is_file()]


def first_sound(directory: Path, steps: Sequence[int]) -> int | None:
    """Returns the first of `steps` whose files are what was written, None if none is; damage is logged."""
    for step in steps:
        folder = directory / str(step)
        if (problem := manifest.problem(folder)) is None:
            return step
        log.warning("%s: damaged checkpoint: %s", folder, problem)
    return None


def temporary_folder(directory: Path, step: int) -> Path:
    """Returns the folder that Orbax writes a step into before it renames it."""
    [folder] = directory.glob(f"{step}{ocp.utils.TMP_DIR_SUFFIX}*")
    return folder


def remove_temporary(directory: Path) -> None:
    """Removes what an interrupted save wrote: Orbax would refuse to save the same step because of it.

    Right after a failure other writes may still be under way, and leave some files for the next call.
    """
    for path in directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def remove_incomplete(directory: Path) -> None:
    """Removes half-deleted steps, beside a complete one.

    Raises:
      OSError: a folder cannot be removed.
      RunFailure: no step is complete; nothing is removed.
    """
    steps = step_numbers(directory)
    incomplete = [step for step in steps if not manifest.is_complete(directory / str(step))]
    if incomplete and len(incomplete) == len(steps):
        listed = "; ".join(f"step {step}: {manifest.problem(directory / str(step))}" for step in steps)
        raise RunFailure(
            f"{directory}: no checkpoint is complete ({listed}). Bring the directory back from a copy, or start over "
            "with train.restart=true"
        )
    for step in incomplete:
        log.warning("%s: incomplete checkpoint removed", directory / str(step))
        shutil.rmtree(directory / str(step))
