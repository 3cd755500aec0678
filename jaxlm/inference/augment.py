"""`jaxlm augment`: writes the training rows of a config and copies of them whose texts a model has rewritten."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxlm.config.schema import Config
from jaxlm.data.augmentation.rewriting import Rewrite, rewrite_rows
from jaxlm.data.config import SourceConfig
from jaxlm.data.examples.tables import SPLITS, ColumnRoles, open_tables
from jaxlm.data.sources.files import find_files
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.inference.back_translation import open_back_translation
from jaxlm.inference.masked_words import open_masked_words
from jaxlm.inference.output import to_jsonl, write_output
from jaxlm.tasks import TASKS
from jaxlm.tasks.base import RowTask, Task

log = logging.getLogger("jaxlm")


class Rewriting(NamedTuple):
    """How copies are made.

    Attributes:
      by: masked_lm: some words are replaced; back_translation: texts are translated and translated back.
      model: the masked language model, or the one that translates.
      back_model: translates back.
      copies: of each row.
      share: masked_lm: of the words.
      top_k: masked_lm: words are drawn from so many.
      generation: back_translation: key=value of the section `generation`.
      only_copies: the rows themselves are not written.
    """

    by: Literal["masked_lm", "back_translation"]
    model: str
    back_model: str | None = None
    copies: int = 1
    share: float = 0.15
    top_k: int = 10
    generation: tuple[str, ...] = ()
    only_copies: bool = False


SAMPLED = ("do_sample=true", "top_k=0", "top_p=0.9")
"""How translations are written unless told otherwise: several copies of a row differ."""


def augment(config: Config, rewriting: Rewriting, output: str) -> None:
    """Writes the training rows, and copies of them, as jsonl with the columns of the rows.

    The file is read in place of the rows: `data.train={path: FILE}`. It is written whole or not at all.

    Args:
      config: whose `data.train` is read and cleaned, and whose `task` says which columns hold texts.
    Raises:
      UserError: a task whose rows have no copies, or settings of the config with which copies would be in the way;
        whatever opening the rows and the models raises; no copy differs from its row.
    """
    task = TASKS[config.task.kind]
    _check(config, task, rewriting)
    _check_output(config, output)
    assert issubclass(task, RowTask)
    table = _training_rows(config, task)
    rewrite = _open(rewriting)
    edit_row = partial(task.edit_row, config.task)
    counts = {"rows": 0, "copies": 0}

    def rows() -> Iterator[dict[str, Any]]:
        if not rewriting.only_copies:
            yield from table.rows
            counts["rows"] = len(table)
        for _, row in rewrite_rows(table, rewriting.copies, config.seed, edit_row, rewrite):
            counts["copies"] += 1
            if counts["copies"] % 1000 == 0:
                log.info("%d copies of %d at most", counts["copies"], rewriting.copies * len(table))
            yield row
        if not counts["copies"]:
            raise UserError(
                f"no copy of the {len(table)} rows of {table.name} came out otherwise than its row: the model "
                f"{rewriting.model} wrote what it read, or nothing; a better model, or a larger share, is needed"
            )

    write_output(output, to_jsonl(rows()))
    advice = "" if output == "-" else f"; train on it with data.train={{path: {output}}}"
    log.info("%s: %d rows and %d rewritten copies%s", output, counts["rows"], counts["copies"], advice)


def _check(config: Config, task: type[Task], rewriting: Rewriting) -> None:
    kind = config.task.kind
    if not issubclass(task, RowTask):
        raise UserError(f"task.kind={kind} reads a corpus; augment writes copies of labelled rows")
    if "augment" in task.unused_data_keys:
        raise UserError(f"task.kind={kind}: a copy of a row would be a false negative of it; augment makes none")
    if config.data.train is None:
        raise UserError("data.train: expected training rows; without them there is nothing to rewrite")
    if config.train.folds is not None or config.data.fold is not None:
        raise UserError("folds: a held-out row's copies would be trained on; expected data.validation, and no folds")
    for split in config.data.shares:
        raise UserError(
            f"data.{split}.fraction: a held-out row's copies would be trained on; expected rows of its own "
            f"(data.{split}.path)"
        )
    if config.data.keep_labels:
        raise UserError("data.keep_labels: it would choose among the copies, too; leave it out")
    if rewriting.by == "masked_lm" and rewriting.back_model is not None:
        raise UserError("--back-model: only with --by back_translation")
    if rewriting.by == "masked_lm" and rewriting.generation:
        raise UserError("--generation: only with --by back_translation")
    if rewriting.by == "back_translation":
        if rewriting.back_model is None:
            raise UserError("--back-model: expected the model that translates back into the rows' language")
        if task.labels_inside:
            raise UserError(
                f"--by back_translation: of task.kind={kind}, words of the text carry the labels, and a translation "
                "moves them; expected --by masked_lm, which leaves them alone"
            )


def _check_output(config: Config, output: str) -> None:
    """Refuses to write the copies over rows that the config reads."""
    if output == "-" or not Path(output).is_file():
        return
    for split in SPLITS:
        source: SourceConfig | None = getattr(config.data, split)
        if source is None or source.path is None:
            continue
        groups = source.path.values() if isinstance(source.path, dict) else (source.path,)
        files = (file for group in groups for file in find_files(group, f"data.{split}.path"))
        if any(Path(output).samefile(file) for file in files):
            raise UserError(f"--output {output}: it is a file of data.{split}, which would be lost; name another")


def _training_rows(config: Config, task: type[RowTask]) -> Table:
    """The rows, cleaned; with the labels of the file, which the run reads again by `data.clean.labels`."""
    clean = config.data.clean.model_copy(update={"labels": {}})
    data = config.data.model_copy(update={"clean": clean, "validation": None, "test": None})
    task.check_data_keys(config.data)
    columns = ColumnRoles(task.text_columns(config.task), key_of=config.task.key_of)
    sources = open_tables(data, ("train",), columns)
    return sources.tables["train"]


def _open(rewriting: Rewriting) -> Rewrite:
    if rewriting.by == "masked_lm":
        return open_masked_words(rewriting.model, rewriting.share, rewriting.top_k).rewrite
    assert rewriting.back_model is not None
    return open_back_translation(rewriting.model, rewriting.back_model, rewriting.generation or SAMPLED).rewrite
