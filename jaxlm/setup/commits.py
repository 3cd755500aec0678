"""The commits of the hub ids that a run starts from: resolved once, and used again whenever it is resumed."""

from __future__ import annotations

from pathlib import Path

from jaxlm.config.loading import load_config
from jaxlm.config.schema import Config
from jaxlm.hf.hub import find_commit
from jaxlm.parallel import processes

_PINNED = (("init", "commit", "revision"), ("tokenizer", "tokenizer_commit", None))
"""Keys of `model`: of a hub id, of its commit, and of the branch, tag or commit that the user asks for."""


def pin_commits(config: Config, earlier: Path) -> Config:
    """Returns the config with the commit of each hub id that it names; every process has to call it.

    Args:
      earlier: config.yaml of the run, if it was started before: its commits hold, whatever a branch has come to since.
    Raises:
      UserError, RunFailure: a hub id that cannot be read.
    """
    commits = processes.broadcast_from_first(lambda: _commits(config, earlier))
    return config.model_copy(update={"model": config.model.model_copy(update=commits)})


def _commits(config: Config, earlier: Path) -> dict[str, str | None]:
    model = config.model
    before = load_config(earlier).model if earlier.is_file() and not config.train.restart else None
    commits = {}
    for name, commit, revision in _PINNED:
        value, asked = getattr(model, name), None if revision is None else getattr(model, revision)
        pinned = getattr(model, commit)
        keys = [key for key in (name, revision) if key is not None]
        if pinned is None and before is not None and all(getattr(before, key) == getattr(model, key) for key in keys):
            pinned = getattr(before, commit)
        if pinned is None and value is not None:
            pinned = find_commit(value, key=f"model.{name}", revision=asked)
        commits[commit] = pinned
    return commits
