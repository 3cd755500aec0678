"""Lists the training rows whose labels a cross-validation disputes: label_errors.jsonl and a section of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config.schema import Config
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.inference.output import to_jsonl
from jaxlm.metrics.label_errors import disputed_labels
from jaxlm.report.sections import ReportSection, excerpt
from jaxlm.run.run_dir import RunDir
from jaxlm.tasks.classification_config import ClassificationConfig
from jaxlm.tasks.labels import LabelEncoder, LabelSet
from jaxlm.training.out_of_fold import HeldOutRow

LABEL_ERRORS = "label_errors.jsonl"
_SHOWN = 100
"""Rows of the report's table."""


class LabelErrors(NamedTuple):
    """What summary.json and report.html say of them."""

    summary: dict[str, Any]
    sections: list[ReportSection]


def write_label_errors(
    directory: RunDir, config: Config, summary: Mapping[str, Any], table: Table, held_out: Sequence[HeldOutRow]
) -> LabelErrors:
    """Writes label_errors.jsonl, the most likely errors first; nothing where rows have no single label.

    A line is the row with `label_error`: `place` in the file, `given` and `suggested` label, the `probability` of each,
    and the `fold` whose model says so.

    Args:
      summary: of the cross-validation, with `problem` and `label_names`.
      table: the training rows.
      held_out: their predictions.
    """
    task = config.task
    if not isinstance(task, ClassificationConfig) or summary["problem"] not in ("binary", "multiclass"):
        return LabelErrors({}, [])
    names = tuple(summary["label_names"])
    encoder = LabelEncoder(
        LabelSet(summary["problem"], names, source="the checkpoint"), task.label, task.label_separator
    )
    labels = np.asarray([_label(encoder, table, row.place) for row in held_out], np.int64)
    scores = np.asarray([[row.prediction["scores"][name] for name in names] for row in held_out], np.float64)
    known = np.flatnonzero(labels >= 0)
    lines: list[dict[str, Any]] = []
    for dispute in disputed_labels(scores[known].reshape(-1, len(names)), labels[known]):
        place = int(known[dispute.row])
        given, suggested = names[dispute.given], names[dispute.suggested]
        row = held_out[place]
        lines.append(
            {
                **table.rows[row.place],
                "label_error": {
                    "place": table.where(row.place),
                    "given": given,
                    "suggested": suggested,
                    "probability": {name: float(scores[place, names.index(name)]) for name in (given, suggested)},
                    "fold": row.fold,
                },
            }
        )
    directory.write_text(LABEL_ERRORS, "".join(to_jsonl(lines)))
    texts = (task.text,) if isinstance(task.text, str) else task.text
    return LabelErrors({"label_errors": _counts(lines, len(known))}, _sections(lines, len(known), texts))


def _label(encoder: LabelEncoder, table: Table, index: int) -> int:
    try:
        return int(encoder.encode(table, index))
    except UserError:
        return -1  # spelled as only the checkpoint's labels may be


def _counts(lines: Sequence[Mapping[str, Any]], num_rows: int) -> dict[str, Any]:
    pairs = Counter(f"{line['label_error']['given']} -> {line['label_error']['suggested']}" for line in lines)
    return {"rows": num_rows, "disputed": len(lines), "given_to_suggested": dict(pairs.most_common(20))}


def _sections(lines: Sequence[Mapping[str, Any]], num_rows: int, texts: Sequence[str]) -> list[ReportSection]:
    if not lines:
        return []
    rows = []
    for line in lines[:_SHOWN]:
        said = line["label_error"]
        probability = said["probability"]
        rows.append(
            [said["place"], *(excerpt(str(line.get(column, ""))) for column in texts), said["given"], said["suggested"],
             probability[said["given"]], probability[said["suggested"]]]
        )  # fmt: skip
    note = (
        f"{len(lines):,} of {num_rows:,} training rows have a label that the model which had not seen them disputes "
        f"(confident learning); read them before you change any. All of them are in {LABEL_ERRORS}."
    )
    columns = ["Row", *texts, "Given", "Suggested", "P(given)", "P(suggested)"]
    return [ReportSection("Likely label errors", "texts", {"columns": columns, "rows": rows}, note)]
