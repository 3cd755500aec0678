"""A finished run scored once more, on a split of its config, a file or rows: `jaxlm evaluate`."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jaxlm.config.schema import Config
from jaxlm.data.config import DataConfig, SourceConfig
from jaxlm.data.examples.tables import SPLITS
from jaxlm.data.sources.files import find_files, plain_suffix, tells_format
from jaxlm.data.sources.text_files import encoding_like
from jaxlm.errors import UserError
from jaxlm.inference.slices import Slicing, slice_lines, slice_scores, slice_sections
from jaxlm.inference.trained import COMPUTE_KEYS, asks_for_mesh, open_trained, run_config
from jaxlm.local_paths import missing
from jaxlm.parallel import processes
from jaxlm.report.format import format_counts
from jaxlm.report.report import write_page
from jaxlm.run.run_dir import RunDir
from jaxlm.tasks.base import Task

log = logging.getLogger("jaxlm")

Rows: TypeAlias = Sequence[dict[str, Any]]
"""Rows that stand in no file, by their columns."""
ROWS = "data.validation.rows"
"""What such rows are called in errors."""
SLICES = "slices"
"""Folder of a run's scores by group."""

_KEPT = {"columns", "rename", "quoting", "encoding", "format", "documents", "separator"}
"""How the run's own files are read, so that a file of the same kind is read likewise."""
_OF_THE_HEAD = ("task.kind", "task.problem", "task.labels", "task.calibration")
_OF_TRAINING = ("name", "optimizer", "train", "checkpoint")
_UNREAD = (
    "task.samples", "task.z_loss", "task.baselines", "task.eval", "task.class_weights", "task.effective_beta",
    "task.loss", "task.focal_gamma", "task.logit_adjustment", "data.batch_order", "data.sampling", "data.augment",
    "data.clean.leaks",
)  # fmt: skip
"""Beginnings of other keys that only training reads."""


def evaluate_run(
    run: str,
    *,
    split: str | None = None,
    data: str | Rows | None = None,
    slicing: Slicing | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Scores a finished run's model on a split of its config, on a file or on rows; returns the scores.

    Args:
      split: train, validation or test; default: test where the config has it, else validation.
      data: instead of a split a file, read with the settings of the run's validation (else train) source, or rows.
      slicing: also score by group: the result holds `slices`, as `slices.slice_scores` gives them, and the run
        directory gets slices/NAME.json and NAME.html, by the split or the file, or "rows".
      overrides: key=value changes of the run's config, for instance where data lies elsewhere today.
    Raises:
      UserError: no such run, split or file; an override that would change the model.
    """
    if split and data is not None:
        raise UserError("expected --split or --data, not both")
    for override in overrides:
        _refuse_unread(override)
    if isinstance(data, str):
        overrides = _of_the_file(run, overrides)
    config = run_config(run, overrides)
    if config is None:
        folder = Path(run)
        absent = missing(folder, folders=True) if not folder.is_dir() else ""
        raise UserError(
            f"--run {run}: no config.yaml; expected a run directory (for a bare checkpoint, use predict){absent}"
        )
    read = _chosen_split(config, split, overrides) if data is None else _given_rows(config, data, overrides)
    changed = config.model_copy(update={"data": _only(config.data, read.split, read.source)})
    trained = open_trained(run, changed, (read.split,), keep_mesh=asks_for_mesh(overrides))
    dataset = trained.setup.datasets[read.split]
    processes.assert_same(f"the rows of {read.key}", dataset.fingerprint)
    with processes.collective_section():
        evaluation = trained.evaluator.evaluate(*trained.parts, dataset)
    log.info("scores of %s on %s: %s", run, read.said, format_counts(dataset.describe()))
    if slicing is None:
        return dict(evaluation.scores)
    task = trained.setup.task
    slices = slice_scores(task, dataset, evaluation, slicing)
    if processes.is_first():
        log.info("%s", slice_lines(task, slices))
        _write_slices(RunDir(Path(run).expanduser()), read.name, {**evaluation.scores, "slices": slices}, task)
    return {**evaluation.scores, "slices": slices}


def _of_the_file(run: str, overrides: Sequence[str]) -> list[str]:
    """Overrides of how a file is read, in the place where they count: where the validation rows are a fraction of the
    training rows, `data.validation.format` is that of `data.train`, whose settings a file is read with."""
    config = run_config(run)
    if config is None or config.data.validation is None or config.data.validation.fraction is None:
        return list(overrides)
    return [re.sub(rf"^\s*data\.validation\.({'|'.join(_KEPT)})(?=\s*[.=])", r"data.train.\1", o) for o in overrides]


class _Read(NamedTuple):
    """The rows that are scored: the split whose place they take, and their names in errors, in the log and in files."""

    split: str
    key: str
    source: SourceConfig
    said: str
    name: str


def _given_rows(config: Config, data: str | Rows, overrides: Sequence[str]) -> _Read:
    """A file, read as the run's own, or rows.

    Raises:
      UserError: no such file; an override of a split that is not read.
    """
    names = ("validation", "train") if isinstance(data, str) else ()
    like = next((name for name in names if _has_own(config.data, name)), None)
    _refuse_other_splits(overrides, like, "--data")
    if not isinstance(data, str):
        return _Read("validation", "--data", SourceConfig(rows=tuple(data)), "the rows given", "rows")
    find_files(data, "--data")
    given = {override.partition("=")[0].strip().removeprefix(f"data.{like}.") for override in overrides}
    source = _file_like(None if like is None else getattr(config.data, like), data, given)
    return _Read("validation", "--data", source, data, Path(data).name)


def _chosen_split(config: Config, split: str | None, overrides: Sequence[str]) -> _Read:
    """A split of the config; by default test where there is one, else validation.

    Raises:
      UserError: the config has no such split; an override of another one.
    """
    split = split or ("test" if config.data.test is not None else "validation")
    from_train = split in config.data.shares or config.data.fold is not None and split == "validation"
    own = "train" if from_train else split
    source = getattr(config.data, own)
    if source is None:
        there = ", ".join(name for name in SPLITS if getattr(config.data, name) is not None)
        raise UserError(f"--split {split}: the run's config has no data.{own}; it has {there or 'no split'}")
    _refuse_other_splits(overrides, own, f"--split {split}")
    return _Read(split, f"data.{own}", source, f"the split {split}", split)


def _write_slices(directory: RunDir, name: str, result: dict[str, Any], task: Task) -> None:
    directory.write_json(f"{SLICES}/{name}.json", result)
    subtitle = f"Scores by group on {name}"
    sections = slice_sections(task, result["slices"])
    path = directory.path / SLICES / f"{name}.html"
    write_page(path, name=directory.path.resolve().name, subtitle=subtitle, title="Groups", sections=sections)
    log.info("wrote %s", path)


def _has_own(data: DataConfig, split: str) -> bool:
    """Whether a split has rows of its own, and is no fraction of others."""
    return getattr(data, split) is not None and split not in data.shares


def _only(data: DataConfig, split: str, source: SourceConfig | None) -> DataConfig:
    """The data of one split, without edited copies; of one that is held out of the training rows, or is left of them,
    what decides it."""
    data = data.model_copy(update={"augment": None, "sampling": "natural"})
    if source is None or source is not data.train:
        return data.model_copy(update={**dict.fromkeys(SPLITS), split: source, "fold": None})
    return data.model_copy(update={**dict.fromkeys(SPLITS), "train": source, **data.shares})


def _refuse_unread(override: str) -> None:
    """Refuses an override that would change the model, or nothing.

    Raises:
      UserError: names the override.
    """
    key = override.partition("=")[0].strip()
    section = key.partition(".")[0]
    if section == "model" and key not in COMPUTE_KEYS:
        raise UserError(
            f"override '{override}': the model of a finished run is what it is; expected a key of another section, "
            f"or one of {', '.join(COMPUTE_KEYS)}"
        )
    if key in _OF_THE_HEAD:
        raise UserError(f"override '{override}': the head of a finished run decides that; leave it out")
    if section in _OF_TRAINING or key.startswith(_UNREAD) or (section == "logging" and key != "logging.directory"):
        raise UserError(f"override '{override}': it changes training, and nothing of a score; leave it out")


def _refuse_other_splits(overrides: Sequence[str], split: str | None, option: str) -> None:
    """Refuses overrides of splits that are not read."""
    for override in overrides:
        parts = override.partition("=")[0].strip().split(".")
        if parts == ["data", "clean", "deduplicate"] and split != "train":
            raise UserError(f"override '{override}': only training rows are de-duplicated; leave it out")
        if parts[0] == "data" and len(parts) > 1 and parts[1] in SPLITS and parts[1] != split:
            read = "no split" if split is None else f"data.{split}"
            raise UserError(f"override '{override}': with {option}, the settings of {read} are read; leave it out")


def _file_like(like: SourceConfig | None, data: str, given: Set[str]) -> SourceConfig:
    """The source of a file; one of another kind than the run's own is read as its name and the `given` keys say."""
    if like is not None and isinstance(like.path, dict) and not tells_format(Path(data)):
        columns = " ".join(f"data.test.path.{column}=FILE" for column in like.path)
        raise UserError(
            f"--data {data}: the run reads parallel files, a file to a column; expected a jsonl, csv, tsv or parquet "
            f"file, or --split test {columns}"
        )
    settings = {} if like is None else like.model_dump(include=_KEPT)
    if Path(data).suffix != Path(str(like and like.first_path)).suffix:
        other = {"format", "separator", "quoting"}
        if plain_suffix(Path(data)) not in (".csv", ".tsv"):
            other.add("columns")
        settings = {name: value for name, value in settings.items() if name not in other - given}
    if like is not None and "encoding" not in given:
        settings["encoding"] = encoding_like(Path(data), like.encoding)
    return SourceConfig(path=data, **settings)
