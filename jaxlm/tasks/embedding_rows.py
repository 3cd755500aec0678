"""Rows of sentence embeddings: the section `task`, the texts of a row, and the examples that they become."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from jaxlm.data.examples.bad_rows import BadRows
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.examples.texts import TextCells
from jaxlm.data.sentence_modules import Pooling, SentenceModules
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.objectives.embeddings import ANCHOR, NEGATIVE, POSITIVE
from jaxlm.tasks.label_cells import number
from jaxlm.tasks.records import Context, TaskConfig

log = logging.getLogger("jaxlm")

Loss = Literal["ranking", "triplet", "cosent", "cosine_mse"]
FALLBACK = "text"
"""Column of rows to be answered that have none of the task's columns."""


class EmbeddingConfig(TaskConfig):
    """Fine-tuning to give texts vectors whose cosines say how much two texts have to do with each other."""

    kind: Literal["embedding"] = "embedding"
    """What is learned."""
    text: tuple[str, ...] | str = "text"
    """Columns of a text and of one that belongs to it (a question and its answer, two sentences); one column for a
    model that is only applied."""
    negative: tuple[str, ...] | str = ()
    """Column or columns of texts that do not belong to the first, for pairs without scores; also of lists of texts."""
    label: str | None = None
    """Column of how similar the two texts are, a number; absent: the texts of a row belong together."""
    loss: Loss | None = None
    """`ranking` (each text finds its partner among all of the batch) or `triplet`, of pairs; `cosent` (the order of the
    scores) or `cosine_mse`, of scored pairs; absent: `ranking` or `cosent`."""
    symmetric: bool = False
    """`ranking`: partners also find the first texts."""
    temperature: float = Field(default=0.05, gt=0)
    """`ranking`, `cosent`: what cosines are divided by."""
    margin: float = Field(default=0.3, gt=0)
    """`triplet`: by how much the cosine of a partner is to exceed that of a negative."""
    score_range: tuple[float, float] | None = None
    """The lowest and the highest score, which `cosine_mse` takes for the cosines 0 and 1; absent: scores are
    cosines."""
    dimensions: tuple[int, ...] = ()
    """Lengths at which vectors shall be of use, too, when the rest is cut off (Matryoshka)."""
    pooling: Pooling | None = None
    """The vector of a text: the `mean` of its tokens, the first (`cls`) or the `last_token`; absent: as the
    checkpoint's sentence-transformers files say, else `mean`."""
    normalize: bool | None = None
    """Whether vectors get length 1; absent: as the checkpoint's sentence-transformers files say, else true."""
    prompts: dict[str, str] = {}
    """By column, what is put before its texts, `query: ` say; absent: those of the checkpoint's sentence-transformers
    files, by the name of the column, else their default prompt."""
    baselines: bool = False
    """Also score, on the test (else validation) rows, the cosines of TF-IDF vectors."""

    @model_validator(mode="after")
    def _agree(self) -> EmbeddingConfig:
        columns = (*self.texts, *self.negatives, *([] if self.label is None else [self.label]))
        if not 1 <= len(self.texts) <= 2:
            raise ValueError(f"expected text to be one or two columns, found {len(self.texts)}")
        if len(set(columns)) < len(columns):
            raise ValueError(f"expected different columns in text, negative and label, found {', '.join(columns)}")
        scored = ("cosent", "cosine_mse")
        if self.loss is not None and (self.loss in scored) != (self.label is not None):
            need = "scored pairs; name their column in label" if self.label is None else "pairs without label"
            raise ValueError(f"loss={self.loss} is for {need}")
        if self.label is not None and self.negatives:
            raise ValueError("negative is for pairs without label; leave one of the two out")
        if self.objective == "triplet" and not self.negatives:
            raise ValueError("loss=triplet needs the column of negative texts; name it in negative")
        if self.symmetric and self.objective != "ranking":
            raise ValueError(f"symmetric is for loss=ranking, not for {self.objective}")
        if self.score_range is not None:
            if self.label is None:
                raise ValueError("score_range is for scored pairs; name their column in label")
            if not self.score_range[0] < self.score_range[1]:
                raise ValueError(f"expected score_range to ascend, found {list(self.score_range)}")
        if any(dimension < 1 for dimension in self.dimensions):
            raise ValueError(f"expected dimensions above 0, found {list(self.dimensions)}")
        if unknown := [name for name in self.prompts if name not in (*columns, FALLBACK)]:
            raise ValueError(f"prompts: {unknown[0]!r} is none of the columns {', '.join(columns)}")
        return self

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of `text`."""
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def negatives(self) -> tuple[str, ...]:
        """The columns of `negative`."""
        return (self.negative,) if isinstance(self.negative, str) else self.negative

    @property
    def objective(self) -> Loss:
        """The loss, chosen or by default."""
        return self.loss or ("ranking" if self.label is None else "cosent")


class RowText(NamedTuple):
    """One text of a row, and its part in it: `ANCHOR`, `POSITIVE` or `NEGATIVE`."""

    column: str
    role: int
    text: str


def answered_columns(config: EmbeddingConfig, columns: Sequence[str]) -> tuple[str, ...]:
    """Returns which columns of rows to be answered are read: the first must hold a text, another may."""
    return tuple(c for c in config.texts if c in columns) or ((FALLBACK,) if FALLBACK in columns else config.texts[:1])


def make_examples(
    config: EmbeddingConfig, context: Context, modules: SentenceModules, table: Table, *, labelled: bool, key: str
) -> Examples:
    """Tokenizes the texts of rows; those of a row are a group. Arguments and errors as in `Task.examples`."""
    rows = _Rows(config, table, labelled=labelled, key=key)
    read: dict[int, list[RowText]] = {}
    labels: list[float | None] = [None] * len(table.rows)
    bad = BadRows(table, context.data, labelled=labelled, key=key)
    for i in range(len(table.rows)):
        try:
            read[i], labels[i] = rows.read(i)
        except UserError as error:
            bad.add(i, error)
    bad.say()
    numbers: dict[str, int] = {}
    for texts in read.values():
        for text in texts:
            numbers.setdefault(text.text, len(numbers))
    framed = [_prompted(config, modules, text) for texts in read.values() for text in texts]
    distinct = list(dict.fromkeys(framed))
    inputs = context.tokenizer.encode(distinct, max_length=context.data.max_length, ids=context.token_ids)
    encoded = dict(zip(distinct, inputs, strict=True))
    ready = iter(framed)
    made: list[Example] = []
    truncated = 0
    for i, texts in read.items():
        partner = next((numbers[text.text] for text in texts if text.role == POSITIVE), -1)
        for text in texts:
            [part] = encoded[next(ready)]
            truncated += part.truncated
            ids = numbers[text.text], numbers[texts[0].text], partner
            arrays = {
                "tokens": part.ids,
                "token_types": part.type_ids,
                "slot_positions": np.asarray(0 if modules.pooling == "cls" else len(part.ids) - 1, np.int32),
                "roles": np.asarray(text.role, np.int32),
                "texts": np.asarray(ids, np.int32),
                "scores": np.asarray(labels[i] or 0.0, np.float32),
            }
            made.append(Example(arrays, i, group=i if len(texts) > 1 else -1, host=text))
    if truncated:
        log.info("%s: %d of %d texts longer than data.max_length=%d: cut", table.name, truncated, len(made),
                 context.data.max_length)  # fmt: skip
    return Examples(table, made, labels, {"truncated": truncated, "skipped": len(bad.errors)}, bad.errors)


def _prompted(config: EmbeddingConfig, modules: SentenceModules, text: RowText) -> str:
    """A text behind its column's prompt; negatives have that of the second column, unless they have one."""
    names = [text.column, *(config.texts[1:] if text.role == NEGATIVE else ())]
    known = {**(modules.prompts or {}), **config.prompts}
    default = "" if modules.default_prompt is None else known.get(modules.default_prompt, "")
    framed = next((known[name] for name in names if name in known), default) + text.text
    return framed.lower() if modules.lowercase else framed


class _Rows:
    """Reads the rows of a table."""

    def __init__(self, config: EmbeddingConfig, table: Table, *, labelled: bool, key: str) -> None:
        self._config, self._table, self._labelled = config, table, labelled
        negatives = config.negatives if labelled else ()
        self._texts = config.texts if labelled else answered_columns(config, table.columns)
        table.require(*self._texts, *negatives, key=key)
        if labelled and config.label is not None:
            table.require(config.label, key="task.label")
        self._cells = {c: TextCells(table, (c,), allow_empty=not labelled) for c in (*self._texts, *negatives)}

    def read(self, i: int) -> tuple[list[RowText], float | None]:
        """Returns the texts of a row, the anchor first, and its score: 1.0 of a pair without label.

        Raises:
          UserError: a cell that holds no text, or no score.
        """
        config, row = self._config, self._table.rows[i]
        found: list[RowText] = []
        for column, role in zip(self._texts, (ANCHOR, POSITIVE), strict=False):
            if role == POSITIVE and not self._labelled and not isinstance(row[column], str):
                continue
            found += [RowText(column, role, text) for text in self._cells[column].read(i)]
        if not self._labelled:
            return found, None
        for column in config.negatives:
            texts = row[column] if isinstance(row[column], list) else self._cells[column].read(i)
            for text in texts:
                if not isinstance(text, str) or not text.strip():
                    where = f"{self._table.where(i)}: {column}"
                    raise UserError(f"{where}: expected a text or a list of texts, found {text!r:.60}")
                found.append(RowText(column, NEGATIVE, text))
        if config.objective == "triplet" and found[-1].role != NEGATIVE:
            raise UserError(f"{self._table.where(i)}: {', '.join(config.negatives)}: expected a negative text")
        return found, 1.0 if config.label is None else self._score(row[config.label], i)

    def _score(self, value: Any, i: int) -> float:
        """A row's score as the loss takes it."""
        config = self._config
        where, score = f"{self._table.where(i)}: {config.label}={value!r:.60}", number(value)
        if score is None:
            raise UserError(f"{where}: expected a number, how similar the two texts are")
        low, high = config.score_range or (-1.0, 1.0)
        if (config.score_range is not None or config.objective == "cosine_mse") and not low <= score <= high:
            advice = "" if config.score_range else "; set task.score_range to the lowest and the highest score"
            raise UserError(f"{where}: expected a score from {low:g} to {high:g}{advice}")
        return score if config.score_range is None else (score - low) / (high - low)
