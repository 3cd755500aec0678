"""What is said of resuming a run: which settings may not change, what is saved, and how to go on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxlm.config.loading import load_config
from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.run.run_dir import RunDir
from jaxlm.training.step_folders import committed_steps, step_numbers

FREE = (
    "train.restart",
    "train.hang_factor",
    "logging.",
    "checkpoint.",
    "mesh.",
    "optimizer.offload",
    "data.token_cache",
)
"""Beginnings of the keys that may change."""
LENGTH = ("train.epochs", "train.steps")
"""Keys that say how long a run is."""


def check_same_settings(directory: RunDir, config: Config) -> None:
    """Refuses to resume a run under settings that would change its result.

    A run that neither is finished nor has a checkpoint has no result yet: any setting may change; so does the number
    of seeds, where there are several.

    Raises:
      UserError: names the keys that differ from the run's config.yaml.
    """
    runs = [directory, *map(RunDir, _repeats(directory.path))]
    if not directory.config.is_file() or not any(run.finished or step_numbers(run.checkpoints) for run in runs):
        return
    old, new = (flatten(c.model_dump()) for c in (load_config(directory.config), config))
    free = FREE if None in (old["train.seeds"], new["train.seeds"]) else (*FREE, "train.seeds")
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key) and not key.startswith(free)]
    if changed:
        listed = "; ".join(f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in changed[:5])
        if set(changed) <= set(LENGTH) and directory.finished:
            raise UserError(
                f"{directory.path} is finished ({listed}), and its schedule has come to its end. To train further, go "
                f"on from its model in a run of another name: name=NAME model.init={directory.path}, with train.epochs "
                "or train.steps for what is to come; warm-up and decay begin anew, as its `optimizer` asks for (most "
                "often a lower optimizer.learning_rate). For one longer schedule, start over with train.restart=true "
                "(the old run is moved aside)"
            )
        raise UserError(
            f"{directory.path} was started with other settings ({listed}). Use the old ones to resume, another "
            "name=NAME, or train.restart=true to start over (the old run is moved aside)"
        )


def check_directory(config: Config) -> None:
    """Refuses, without writing anything, what a run of this config would be refused for because of its directory.

    Raises:
      UserError: it cannot be written; a run with other settings is there.
    """
    directory = RunDir(Path(config.logging.directory).absolute() / config.name)
    directory.check_place()
    if not config.train.restart:
        check_same_settings(directory, config)


def _repeats(directory: Path) -> list[Path]:
    """The runs of `train.seeds` or `train.folds` in a directory."""
    return [path.parent for kind in ("seed", "fold") for path in sorted(directory.glob(f"{kind}-*/config.yaml"))]


def describe_saved(checkpoints: Path, config: Config) -> str:
    """Returns what a run that ends now has saved, for a message."""
    steps = committed_steps(checkpoints)
    if not steps:
        return "nothing was saved yet"
    return f"the checkpoint of step {steps[-1]} is saved; {how_to_resume(config)}"


def how_to_resume(config: Config) -> str:
    """Returns which command goes on from the last checkpoint, for a message."""
    return f"the same command{' with train.restart=false' if config.train.restart else ''} resumes"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts by their dotted keys; an empty dict is a leaf."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    dotted = f"{prefix}." if prefix else ""
    return {key: leaf for name, item in value.items() for key, leaf in flatten(item, dotted + name).items()}
