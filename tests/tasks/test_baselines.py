"""The systems that a classifier has to beat."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlm.tasks.baselines import LabelledTexts, baseline_scores

TRAIN = LabelledTexts(["good film", "good plot", "good", "bad film", "bad plot"], np.array([1, 1, 1, 0, 0]))
TEST = LabelledTexts(["good story", "bad story", "bad end", "bad"], np.array([1, 0, 0, 0]))


def test_majority_and_regression():
    found = baseline_scores("binary", ("neg", "pos"), TRAIN, TEST, seed=0)
    assert found.keys() == {"majority", "tfidf_logistic_regression"}
    assert found["majority"]["accuracy"] == 1 / 4  # always 1, the label of three of five training rows
    assert found["majority"]["roc_auc"] == 0.5
    assert found["tfidf_logistic_regression"]["accuracy"] == 1


def test_a_label_without_training_rows_is_never_predicted():
    train, test = TRAIN._replace(labels=np.array([2, 2, 2, 0, 0])), TEST._replace(labels=np.array([2, 0, 0, 1]))
    scores = baseline_scores("multiclass", ("neg", "new", "pos"), train, test, 0)["tfidf_logistic_regression"]
    assert scores["recall/new"] == 0 and scores["accuracy"] == 3 / 4


@pytest.mark.parametrize("problem", ["multilabel", "regression"])
def test_other_problems_have_none(problem):
    assert baseline_scores(problem, ("a", "b"), TRAIN, TEST, seed=0) == {}
