"""`jaxlm.finetune` and `jaxlm.pretrain`: a config becomes a finished run; the commands of these names call `train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxlm.api.entry import entry
from jaxlm.api.loaded import LoadedModel, load
from jaxlm.api.settings import ConfigLike, read_config
from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.report.format import score_lines
from jaxlm.report.repeats import repeat_lines
from jaxlm.run.run_dir import REPORT
from jaxlm.tasks import TASKS
from jaxlm.training.stages import run_chain


@dataclass(frozen=True)
class RunSummary:
    """A finished run. It may stand wherever a path of a run is expected, in `model.init` too.

    Attributes:
      path: the run directory.
      values: what summary.json holds.
    """

    path: Path
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.values["name"]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The scores of the best checkpoint, by split; of several runs (`train.seeds`, `train.folds`), their means."""
        return self.values["scores"]

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint; None without a validation split, and of several runs."""
        return self.values.get("best_step")

    @property
    def report(self) -> Path:
        """report.html."""
        return self.path / REPORT

    @cached_property
    def model(self) -> LoadedModel:
        """The trained model, opened when it is first asked for; of several runs, the best one's.

        Raises:
          UserError: a model that answers no rows; several runs without a best.
        """
        if "repeats" not in self.values:
            return load(self.path)
        if not self.values.get("best"):
            raise UserError(f"{self.path}: none of its runs is the best; load one of them")
        return load(self.path / self.values["best"])

    def lines(self) -> str:
        """Returns the headline scores for people, as the commands print them."""
        return (repeat_lines if "repeats" in self.values else score_lines)(self.values)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunSummary({str(self.path)!r})\n{self.lines()}"


def finetune(config: ConfigLike, /, **overrides: Any) -> RunSummary:
    """Fine-tunes by a config, or resumes the run; a run that is finished is returned as it is.

    Args:
      config: a YAML file, a mapping, or a `jaxlm.config.schema.Config`.
      overrides: keys of the config: `train={"epochs": 1}`, or `**{"train.epochs": 1}`; rows that stand in no file are
        `data={"train": {"rows": [...]}}`.
    Returns:
      The finished run: `path`, `metrics`, `model` and more.
    Raises:
      jaxlm.errors.UserError: a mistake in what was given, in words.
      jaxlm.errors.RunFailure: a full disk, a diverged run; what was saved stays.
      jaxlm.errors.Interrupted: Ctrl-C; the state is saved, and the same call goes on.
    """
    with entry("finetune"):
        return train(read_config(config, overrides), "finetune", _place(config))


def pretrain(config: ConfigLike, /, **overrides: Any) -> RunSummary:
    """Pretrains by a config; otherwise as `finetune`."""
    with entry("pretrain"):
        return train(read_config(config, overrides), "pretrain", _place(config))


def train(config: Config, kind: str, place: str, *, command: str = "") -> RunSummary:
    """Runs a config, after the runs that it needs.

    Args:
      kind: "pretrain" or "finetune".
      place: where the config is from, for errors.
      command: what the user typed, for the summary.
    Raises:
      As `finetune`.
    """
    check_kind(config, kind, place)
    summary = run_chain(config, command=command)
    return RunSummary(Path(config.logging.directory).absolute() / config.name, summary)


def check_kind(config: Config, kind: str, place: str) -> None:
    """Raises UserError where a config's task is not for `kind`, "pretrain" or "finetune"."""
    right = "pretrain" if TASKS[config.task.kind].reads == "corpus" else "finetune"
    if kind != right:
        raise UserError(f"{place}: task.kind={config.task.kind} is for `jaxlm {right}`")


def _place(config: ConfigLike) -> str:
    return "the config" if isinstance(config, Config | Mapping) else str(config)
