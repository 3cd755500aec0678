"""The vectors of rows, and their scores: correlation of scored pairs, retrieval among the texts of a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from jaxlm.data.examples.example import Examples
from jaxlm.metrics.embeddings import correlations, cosine_rows, normalized, retrieval_scores
from jaxlm.objectives.embeddings import ANCHOR, POSITIVE
from jaxlm.tasks.embedding_rows import RowText
from jaxlm.tasks.records import Answer


class RowVectors(NamedTuple):
    """The texts of a row, the anchor first, and float32 [texts, D], a vector for each."""

    texts: tuple[RowText, ...]
    vectors: np.ndarray

    def of_role(self, role: int) -> int | None:
        """The index of the first text with a role."""
        return next((i for i, text in enumerate(self.texts) if text.role == role), None)

    def cosine(self, size: int | None = None) -> float:
        """That of the row's pair, by the first `size` numbers of the vectors."""
        pair = normalized(self.vectors[[0, self.of_role(POSITIVE)], :size])
        return float(pair[0] @ pair[1])


def pair_scores(answers: Sequence[Answer], size: int | None = None) -> dict[str, float]:
    """Returns `spearman` and `pearson` of cosines and labels.

    Args:
      size: how many numbers of the vectors count; None: all.
    """
    pairs = [(answer.kept.cosine(size), answer.label) for answer in answers if answer.label is not None]
    return correlations(*np.asarray(pairs, np.float64).reshape(-1, 2).T)


@dataclass(frozen=True)
class Search:
    """The different anchors of a split, each of which looks for its positives among all other different texts.

    Attributes:
      queries, documents: (answer, place in it) of each text's first occurrence.
      relevant: of each query, the documents that are a positive of it in some row.
    """

    answers: Sequence[Answer]
    queries: dict[str, tuple[int, int]]
    documents: dict[str, tuple[int, int]]
    relevant: list[list[int]]

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Search:
        """Reads the texts of answers; one without label only adds documents."""
        queries: dict[str, tuple[int, int]] = {}
        documents: dict[str, tuple[int, int]] = {}
        wanted: dict[str, dict[str, None]] = {}
        for i, answer in enumerate(answers):
            anchor = answer.kept.texts[0].text
            for j, text in enumerate(answer.kept.texts):
                if text.role == ANCHOR and answer.label is not None:
                    queries.setdefault(text.text, (i, j))
                    continue
                documents.setdefault(text.text, (i, j))
                if text.role == POSITIVE:
                    wanted.setdefault(anchor, {})[text.text] = None
        numbers = {text: number for number, text in enumerate(documents)}
        return cls(answers, queries, documents, [[numbers[text] for text in wanted[query]] for query in queries])

    def scores(self, size: int | None = None) -> dict[str, float]:
        """Returns the scores of `retrieval_scores`; `size` as in `pair_scores`."""
        return retrieval_scores(self.similarities(size), self.relevant)

    def similarities(self, size: int | None = None) -> Iterator[np.ndarray]:
        """Yields float32 [documents] for each query."""
        return cosine_rows(self._vectors(self.queries, size), self._vectors(self.documents, size))

    def _vectors(self, places: dict[str, tuple[int, int]], size: int | None) -> np.ndarray:
        return np.stack([self.answers[i].kept.vectors[j, :size] for i, j in places.values()])


def tfidf_scores(train: Examples, test: Examples, *, scored: bool) -> dict[str, float]:
    """Scores the cosines of TF-IDF vectors of words, their weights learned from the training texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows: dict[int, list[RowText]] = {}
    for example in test.examples:
        rows.setdefault(example.row, []).append(example.host)
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
    vectorizer.fit({example.host.text for example in train.examples})
    if scored:
        firsts, seconds = ([texts[k].text for texts in rows.values()] for k in (ANCHOR, POSITIVE))
        left, right = (cast(Any, vectorizer.transform(texts)) for texts in (firsts, seconds))
        cosines = np.asarray(left.multiply(right).sum(axis=1)).ravel()
        return correlations(cosines, np.asarray([test.labels[row] for row in rows], np.float64))
    empty = np.zeros((0, 0), np.float32)
    search = Search.of([Answer({}, test.labels[row], RowVectors(tuple(t), empty)) for row, t in rows.items()])
    documents: Any = vectorizer.transform(list(search.documents))
    queries: Any = vectorizer.transform(list(search.queries))
    found = (np.asarray((queries[i] @ documents.T).todense()).ravel() for i in range(len(search.queries)))
    return retrieval_scores(found, search.relevant)
