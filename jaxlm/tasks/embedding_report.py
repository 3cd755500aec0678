"""Sections of the report of sentence embeddings: the pairs and searches that went worst."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from jaxlm.metrics.embeddings import first_rank
from jaxlm.report.sections import ReportSection, excerpt
from jaxlm.tasks.embedding_scores import Search
from jaxlm.tasks.records import Answer

_ROWS = 20
_DOTS = 500


def pair_report(answers: Sequence[Answer]) -> list[ReportSection]:
    """Cosines by score, and the pairs whose cosine stands farthest from where their score puts them."""
    pairs = [(i, a, a.kept.cosine(), float(a.label)) for i, a in enumerate(answers, 1) if a.label is not None]
    cosines, gold = (np.asarray([pair[k] for pair in pairs]) for k in (2, 3))
    places = [stats.rankdata(values) / len(pairs) for values in (cosines, gold)]
    rows = []
    for k in np.argsort(-np.abs(places[0] - places[1]), kind="stable")[:_ROWS].tolist():
        i, answer, cosine, score = pairs[k]
        texts = [excerpt(text.text) for text in answer.kept.texts[:2]]
        rows.append([i, *texts, score, cosine, float(places[1][k]), float(places[0][k])])
    columns = ["Line", "First text", "Second text", "Score", "Cosine", "Rank of the score", "Rank of the cosine"]
    chosen = np.linspace(0, len(pairs) - 1, min(_DOTS, len(pairs))).astype(int)
    dots = {"x": gold[chosen].tolist(), "y": cosines[chosen].tolist(), "style": "dots", "name": "pairs"}
    chart = {
        "series": [dots],
        "axes": {"x": "score", "y": "cosine"},
        "alt": "the cosine of each pair of texts by its score",
    }
    return [
        ReportSection("Cosine by score", "chart", chart, f"{len(chosen)} of {len(pairs)} pairs."),
        ReportSection("Worst pairs", "texts", {"columns": columns, "rows": rows},
                      "Ranks from 0 (least similar) to 1; line numbers are those of the split's file in predictions/."),
    ]  # fmt: skip


def retrieval_report(answers: Sequence[Answer]) -> list[ReportSection]:
    """How often the right text stood where, and the queries for which it stood last."""
    search = Search.of(answers)
    documents = list(search.documents)
    found: list[tuple[int, str, int, int]] = []
    for query, row, wanted in zip(search.queries, search.similarities(), search.relevant, strict=True):
        found.append((first_rank(row, wanted), query, wanted[int(row[wanted].argmax())], int(row.argmax())))
    ranks = np.asarray([rank for rank, *_ in found])
    bounds = [(1, 1), (2, 3), (4, 10), (11, 100), (101, len(documents))]
    table = [
        [f"{low}" if low == high else f"{low} to {high}", int(count), float(count / len(ranks))]
        for low, high in ((low, min(high, len(documents))) for low, high in bounds)
        if low <= high
        for count in [((ranks >= low) & (ranks <= high)).sum()]
    ]
    rows = [
        [rank, excerpt(query), excerpt(documents[wanted]), excerpt(documents[first])]
        for rank, query, wanted, first in sorted(found, key=lambda item: -item[0])[:_ROWS]
        if rank > 1
    ]
    note = f"{len(ranks):,} queries among {len(documents):,} different texts."
    columns = {"columns": ["Rank of the first right text", "Queries", "Share"], "rows": table, "bars": "Share"}
    sections = [ReportSection("Ranks", "table", columns, note)]
    if rows:
        names = ["Rank", "Query", "Right", "Found first"]
        sections.append(ReportSection("Worst searches", "texts", {"columns": names, "rows": rows}))
    return sections
