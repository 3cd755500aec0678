"""What the data of question answering settle: whether questions may have no answer, and how answers are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxlm.data.sources.table import Table
from jaxlm.metrics.cmrc import score_cmrc
from jaxlm.metrics.squad import AnswerScore, score_v1, score_v2
from jaxlm.tasks.answer_cells import impossible, read_answers

_FIRST_HAN, _LAST_HAN = "\u4e00", "\u9fff"
_SAMPLE = 1000
"""Contexts that tell the language."""


class AnswerSettings(NamedTuple):
    """What is settled by the data, and kept in the exported config.json."""

    no_answer: bool = False
    """Questions may have no answer."""
    scoring: str = "squad"
    """"squad" or "cmrc"."""
    threshold: float = 0.0
    """A question is left without an answer where the logits of that exceed its best answer's by more than this."""

    def compare(self, prediction: str, answers: Sequence[str]) -> AnswerScore:
        """Returns the scores of an answer by the official script; "" is no answer."""
        if self.scoring == "cmrc":
            return score_cmrc(prediction, answers)
        return score_v2(prediction, answers) if self.no_answer else score_v1(prediction, answers)

    def summary(self) -> str:
        """Says it in words."""
        kind = "may have no answer" if self.no_answer else "all have an answer"
        script = {"squad": "SQuAD", "cmrc": "CMRC 2018"}.get(self.scoring, self.scoring)
        return f"question answering; questions {kind} (task.no_answer), scores are {script}'s (task.scoring)"


def settle(
    tables: Mapping[str, Table], context: str, answers: str, hf_config: Mapping[str, Any] | None
) -> AnswerSettings:
    """Settles by the training rows, else by the checkpoint, else by any rows; a threshold is the checkpoint's.

    Args:
      tables: by split.
      context, answers: columns.
    Raises:
      UserError: a missing column.
    """
    known = (hf_config or {}).get("question_answering") or {}
    settings = AnswerSettings(bool(known.get("no_answer")), known.get("scoring", "squad"), known.get("threshold", 0.0))
    telling = [tables["train"]] if "train" in tables else [] if known else list(tables.values())
    if not telling:
        return settings
    for table in telling:
        table.require(context, key="task.context")
        table.require(answers, key="task.answers")
    rows = [row for table in telling for row in table.rows]
    return settings._replace(
        no_answer=any(_says_no_answer(row, answers) for row in rows),
        scoring="cmrc" if _is_chinese(rows, context) else "squad",
    )


def _says_no_answer(row: Mapping[str, Any], column: str) -> bool:
    if (said := impossible(row)) is not None:
        return said
    try:
        return not read_answers(row[column])
    except ValueError:
        return False  # a bad row


def _is_chinese(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether most letters are Chinese characters."""
    texts = (row[column] for row in rows[:: max(1, len(rows) // _SAMPLE)])
    letters = [character for text in texts if isinstance(text, str) for character in text if character.isalpha()]
    return 2 * sum(_FIRST_HAN <= character <= _LAST_HAN for character in letters) > len(letters)
