"""Baselines that a text classifier has to beat: the majority label, and TF-IDF with logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.metrics.classification import classification_metrics


class LabelledTexts(NamedTuple):
    """The rows of a split: N whole texts, whatever the tokenizer cut, and label ids int [N]."""

    texts: Sequence[str]
    labels: np.ndarray


def baseline_scores(
    problem: str, label_names: Sequence[str], train: LabelledTexts, test: LabelledTexts, seed: int
) -> dict[str, dict[str, float]]:
    """Scores both baselines on the test rows: {"majority": metrics, "tfidf_logistic_regression": metrics}.

    Only for binary and multi-class problems; {} for others. The features are word uni- and bigrams that occur in at
    least two training rows, with sublinear term frequency; the regression is scikit-learn's default, L2 with C = 1.

    Args:
      label_names: the labels in id order.
      seed: of the regression's solver.
    """
    if problem not in ("binary", "multiclass"):
        return {}
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    num_labels, num_test = len(label_names), len(test.texts)
    majority = np.tile(np.bincount(train.labels, minlength=num_labels) / len(train.labels), (num_test, 1))

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    classifier = LogisticRegression(max_iter=1000, random_state=seed)
    classifier.fit(vectorizer.fit_transform(train.texts), train.labels)
    linear = np.zeros((num_test, num_labels))
    linear[:, classifier.classes_] = classifier.predict_proba(vectorizer.transform(test.texts))
    return {
        name: classification_metrics(problem, test.labels, scores, label_names)
        for name, scores in (("majority", majority), ("tfidf_logistic_regression", linear))
    }
