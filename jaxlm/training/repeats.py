"""Runs one config several times, by seeds or by folds, and writes the summary over all of the runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jaxlm.config.loading import dump_config
from jaxlm.config.schema import Config
from jaxlm.data.config import FoldConfig
from jaxlm.errors import Interrupted, UserError
from jaxlm.parallel import processes
from jaxlm.report.repeats import repeat_sections, summarize
from jaxlm.report.report import write_report
from jaxlm.report.sections import write_analysis
from jaxlm.run.run_dir import ANALYSIS, CONFIG, SUMMARY, RunDir
from jaxlm.setup.commits import pin_commits
from jaxlm.setup.setup import TOKENS
from jaxlm.tasks import TASKS
from jaxlm.training.label_errors import write_label_errors
from jaxlm.training.out_of_fold import write_out_of_fold
from jaxlm.training.settings import check_same_settings, how_to_resume

log = logging.getLogger("jaxlm")

Train = Callable[[Config], dict[str, Any]]
"""Runs or resumes one run and returns its summary, as `training.loop.run_training`."""


def is_repeated(config: Config) -> bool:
    """Whether a config asks for several runs."""
    return config.train.seeds is not None or config.train.folds is not None


def repeats(config: Config) -> list[Config]:
    """Returns the configs of the runs that `train.seeds` or `train.folds` asks for; of neither, the config itself.

    Raises:
      UserError: folds of data that have none.
    """
    train = config.train
    if not is_repeated(config):
        return [config]
    directory = str(Path(config.logging.directory) / config.name)
    cache = config.data.token_cache or str(Path(config.logging.directory) / TOKENS)
    once = {"seeds": None, "folds": None, "restart": False}
    common = {
        "train": train.model_copy(update=once),
        "logging": config.logging.model_copy(update={"directory": directory}),
        "data": config.data.model_copy(update={"token_cache": cache}),
    }
    if train.seeds is not None:
        if config.seed + train.seeds > 2**31:
            raise UserError(f"train.seeds={train.seeds}: from seed={config.seed} on, they reach 2^31; lower `seed`")
        numbers = range(config.seed, config.seed + train.seeds)
        return [config.model_copy(update={**common, "name": f"seed-{n}", "seed": n}) for n in numbers]
    assert train.folds is not None
    _check_folds(config)
    folds = [FoldConfig(number=n, folds=train.folds, seed=config.seed) for n in range(train.folds)]
    return [
        config.model_copy(
            update={**common, "name": f"fold-{fold.number}", "data": common["data"].model_copy(update={"fold": fold})}
        )
        for fold in folds
    ]


def run_repeats(config: Config, train: Train, *, command: str = "") -> dict[str, Any]:
    """Runs or resumes the runs of a config with `train.seeds` or `train.folds`; returns the summary over them.

    A finished run is not run again, and more seeds may be asked for later. The directory of the config holds the runs,
    and summary.json, analysis.json and report.html over all of them; of folds, predictions/out_of_fold.jsonl and, in
    classification, label_errors.jsonl.

    Args:
      train: runs one of them.
      command: what the user typed.
    Raises:
      UserError, RunFailure, Interrupted: as `train`, of any of the runs; those that are finished stay so.
    """
    directory = RunDir(Path(config.logging.directory).absolute() / config.name)
    config = pin_commits(config, directory.config)
    runs = repeats(config)
    with ExitStack() as held:
        processes.broadcast_from_first(lambda: _open(config, held))
        summaries: dict[str, dict[str, Any]] = {}
        for number, one in enumerate(runs, 1):
            log.info("%s: %s (%d of %d)", config.name, one.name, number, len(runs))
            try:
                summaries[one.name] = train(one)
            except Interrupted as error:
                raise Interrupted(str(error).replace(how_to_resume(one), how_to_resume(config))) from error
        return processes.broadcast_from_first(lambda: _finish(directory, config, summaries, command))


def _open(config: Config, held: ExitStack) -> None:
    """Makes, checks and locks the directory of the runs, for as long as `held` is open."""
    directory = RunDir.open(Path(config.logging.directory).absolute(), config.name, restart=config.train.restart)
    held.enter_context(directory.lock())
    check_same_settings(directory, config)
    directory.write_text(CONFIG, dump_config(config))


def _finish(directory: RunDir, config: Config, summaries: dict[str, dict[str, Any]], command: str) -> dict[str, Any]:
    """Writes what is said of all runs together; the summary comes last."""
    kind = "seeds" if config.train.folds is None else "folds"
    summary = summarize(config.name, kind, summaries, command)
    sections = repeat_sections(summary)
    if kind == "folds":
        table, held_out = write_out_of_fold(directory, config, tuple(summaries))
        errors = write_label_errors(directory, config, summary, table, held_out)
        summary, sections = summary | errors.summary, sections + errors.sections
    directory.write_json(SUMMARY, {**summary, "status": "reporting"})
    write_analysis(directory.path / ANALYSIS, sections)
    write_report(directory.path)
    directory.write_json(SUMMARY, summary)
    return summary


def _reads_corpus(config: Config) -> bool:
    return TASKS[config.task.kind].reads == "corpus"


def _check_folds(config: Config) -> None:
    """Refuses folds where there are no labelled training rows, or other validation rows."""
    if _reads_corpus(config):
        raise UserError(f"train.folds: task.kind={config.task.kind} reads a corpus; folds are of labelled rows")
    if config.data.train is None:
        raise UserError("train.folds: expected data.train, whose rows are divided")
    if config.data.validation is not None:
        raise UserError(
            "train.folds: the rows that a fold holds out are its validation rows; set data.validation=null (its rows "
            "may be added to the training file)"
        )
    if config.data.fold is not None:
        raise UserError("data.fold: train.folds sets it for each of its runs; leave it out")
