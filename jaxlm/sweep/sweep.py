"""Runs the trials of a sweep: `jaxlm sweep`; what was begun is resumed, what is poor is ended early."""

from __future__ import annotations

import json
import logging
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config.loading import dump_config, override_config
from jaxlm.config.schema import Config
from jaxlm.errors import RunFailure, UserError
from jaxlm.files import remove_folder
from jaxlm.metrics.best import rank
from jaxlm.report.report import write_page
from jaxlm.run.run_dir import CHECKPOINTS, CONFIG, SUMMARY, RunDir
from jaxlm.setup.setup import TOKENS
from jaxlm.sweep.results import METRIC, describe, sweep_sections
from jaxlm.sweep.space import Space, overrides, plain_space
from jaxlm.sweep.study import Chosen, Study
from jaxlm.training.run import Evaluated
from jaxlm.training.settings import FREE, flatten
from jaxlm.training.stages import run_chain, run_pretraining

log = logging.getLogger("jaxlm")

BEST = "best.yaml"
"""Config of the best trial, in the sweep's directory."""
SPACE = "space.json"


class Search(NamedTuple):
    """How a sweep searches.

    Attributes:
      space: what is chosen.
      trials: how many there shall be, those of other processes and earlier commands included.
      seed: of the sampler.
      pruning: whether a trial ends that is worse, after an evaluation, than the median of the trials before.
    """

    space: Space
    trials: int
    seed: int = 0
    pruning: bool = True


class _Pruned(Exception):
    """The trial is not worth going on."""


def run_sweep(config: Config, search: Search, *, command: str = "") -> dict[str, Any]:
    """Runs trials until there are so many; returns the contents of the sweep's summary.json.

    The directory `<name>-sweep` beside where the run itself would be holds a run `trial-N` each, Optuna's study, and
    after each trial summary.json, report.html and best.yaml. The same command resumes, in several processes too.

    Args:
      config: of every trial, but for the keys of the space.
      command: what the user typed.
    Raises:
      UserError: no validation split; another config or space than the sweep was begun with; a trial's mistake.
      RunFailure: no trial ended well.
      Interrupted: a signal came; the trial's state is saved.
    """
    if config.data.validation is None and config.train.folds is None:
        raise UserError("data.validation: expected rows to compare the trials by")
    root, name = Path(config.logging.directory).absolute(), f"{config.name}-sweep"
    if config.train.restart:
        raise UserError(f"train.restart: several processes may work on a sweep; move {root / name} away instead")
    directory = RunDir.open(root, name, restart=False)
    config = run_pretraining(config)
    study = Study(directory.path, search.space, seed=search.seed, pruning=search.pruning)
    with study.locked():
        _check_same(directory, config, search.space)
    while True:
        with ExitStack() as held:
            chosen = study.next(search.trials, held)
            if chosen is None:
                break
            _run_trial(config, name, study, chosen)
            with study.locked():
                _write(directory, config, study, command)
    with study.locked():
        summary = _write(directory, config, study, command)
    if summary["best"] is None:
        raise RunFailure(f"{directory.path}: no trial ended with a score; see summary.json for what became of each")
    return summary


def trial_config(config: Config, sweep: str, number: int, values: dict[str, Any]) -> Config:
    """Returns the config of a trial, a run in the directory `sweep`."""
    made = override_config(config, overrides(values))
    root = Path(config.logging.directory)
    logging_ = config.logging.model_copy(update={"directory": str(root / sweep)})
    data = made.data.model_copy(update={"token_cache": made.data.token_cache or str(root / TOKENS)})
    changed = {"name": f"trial-{number}", "logging": logging_, "data": data}
    return made.model_copy(update=changed)


def _check_same(directory: RunDir, config: Config, space: Space) -> None:
    """Writes what the sweep is of, or refuses to go on with something else."""
    settings = {k: v for k, v in flatten(config.model_dump(mode="json")).items() if not k.startswith(FREE)}
    now = json.loads(json.dumps({"config": settings, "space": plain_space(space)}))
    before = directory.read_json(SPACE)
    if before is None:
        directory.write_json(SPACE, now)
        directory.write_text(CONFIG, dump_config(config))
        return
    for part in ("space", "config"):
        old, new = before[part], now[part]
        if changed := [key for key in {**old, **new} if old.get(key) != new.get(key)]:
            listed = "; ".join(f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in changed[:5])
            raise UserError(
                f"{directory.path} was begun with another {part} ({listed}). Use the old one to go on, or another "
                "name=NAME, or move the directory away"
            )


def _run_trial(config: Config, sweep: str, study: Study, chosen: Chosen) -> None:
    """Runs or resumes a trial, and tells the study what became of it."""
    trial, said = chosen.trial, ", ".join(overrides(chosen.values))
    log.info("trial %d: %s", trial.number, said)
    state = study.states

    def evaluated(evaluation: Evaluated) -> None:
        _remember_metric(study, evaluation.metric, higher_is_better=evaluation.higher_is_better)
        value = rank(evaluation.value, higher_is_better=evaluation.higher_is_better)
        known = study.trials[trial.number].intermediate_values  # of a trial that is resumed, some come again
        if math.isfinite(value) and evaluation.number not in known:
            trial.report(value, evaluation.number)
        if trial.should_prune():
            raise _Pruned

    try:
        one = trial_config(config, sweep, trial.number, chosen.values)
        summary = run_chain(one, after_evaluation=evaluated)
    except _Pruned:
        study.study.tell(trial, state=state.PRUNED)
        remove_folder(Path(one.logging.directory) / one.name / CHECKPOINTS)
        log.info("trial %d ends early: it is worse than the median of those before", trial.number)
        return
    except RunFailure as error:
        trial.set_user_attr("error", str(error))
        study.study.tell(trial, state=state.FAIL)
        log.warning("trial %d failed: %s", trial.number, error)
        return
    except UserError as error:
        trial.set_user_attr("error", str(error))
        study.study.tell(trial, state=state.FAIL)
        raise UserError(f"trial {trial.number} ({said}): {error}") from error
    metric = summary["metric"]
    higher = next((m["higher_is_better"] for m in summary["metrics"] if m["name"] == metric), True)
    _remember_metric(study, metric, higher_is_better=higher)
    value = rank(summary["scores"].get("validation", {}).get(metric), higher_is_better=higher)
    trial.set_user_attr("scores", summary["scores"])
    if not math.isfinite(value):
        study.study.tell(trial, state=state.FAIL)
    else:
        study.study.tell(trial, value)


def _remember_metric(study: Study, metric: str, *, higher_is_better: bool) -> None:
    if METRIC not in study.study.user_attrs:
        study.study.set_user_attr(METRIC, {"name": metric, "higher_is_better": higher_is_better})


def _write(directory: RunDir, config: Config, study: Study, command: str) -> dict[str, Any]:
    """Writes best.yaml, report.html and summary.json; returns the last."""
    summary = {"name": directory.path.name, "command": command, **describe(study)}
    if summary["best"] is not None:
        best = summary["trials"][summary["best"]]
        directory.write_text(BEST, dump_config(override_config(config, overrides(best["values"]))))
    subtitle = f"{len(summary['trials'])} trials of {config.name}"
    path, sections = directory.path / "report.html", sweep_sections(summary)
    write_page(path, name=directory.path.name, subtitle=subtitle, title="Trials", sections=sections)
    directory.write_json(SUMMARY, summary)
    return summary
