"""Baselines that a text classifier has to beat: the majority label, and TF-IDF with logistic regression."""

from __future__ import annotations

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from jaxlm.metrics.classification import classification_metrics
from jaxlm.tasks import Classification
from jaxlm.tasks.classification import Examples


def baseline_scores(task: Classification, train: Examples, test: Examples, seed: int) -> dict[str, dict[str, float]]:
    """Scores both baselines on the test rows: {"majority": metrics, "tfidf_logistic_regression": metrics}.

    Only for binary and multi-class tasks; {} for others. The features are word uni- and bigrams seen in at least two
    training rows, sublinear term frequency; the regression is scikit-learn's default, L2 with C = 1.
    """
    if task.problem not in ("binary", "multiclass"):
        return {}
    x_train, y_train = _texts_and_labels(task, train)
    x_test, y_test = _texts_and_labels(task, test)
    num_labels = len(task.label_names)
    majority = np.tile(np.bincount(y_train, minlength=num_labels) / len(y_train), (len(y_test), 1))

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    classifier = LogisticRegression(max_iter=1000, random_state=seed)
    classifier.fit(vectorizer.fit_transform(x_train), y_train)
    linear = np.zeros((len(y_test), num_labels))
    linear[:, classifier.classes_] = classifier.predict_proba(vectorizer.transform(x_test))
    return {
        name: classification_metrics(task.problem, y_test, scores, task.label_names)
        for name, scores in (("majority", majority), ("tfidf_logistic_regression", linear))
    }


def _texts_and_labels(task: Classification, split: Examples) -> tuple[list[str], np.ndarray]:
    """Whole texts, one per row, whatever the tokenizer cut."""
    labels = {example.index: int(example.label) for example in split.examples}
    texts = [" ".join(str(split.table.rows[i][column]) for column in task.text_columns) for i in labels]
    return texts, np.asarray(list(labels.values()))
