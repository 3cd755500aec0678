"""The outputs of a text's windows are made one."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.corpora import byte_tokenizer

from jaxlm.data.config import DataConfig
from jaxlm.data.examples.example import Example
from jaxlm.errors import UserError
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.classification_config import ClassificationConfig
from jaxlm.tasks.records import Context

CHECKPOINT = {"id2label": {"0": "no", "1": "yes", "2": "perhaps"}}


def task(pooling: str, **data: object) -> Classification:
    config = ClassificationConfig(pool_windows=pooling)
    return Classification.create(config, Context(DataConfig(**data), byte_tokenizer(), CHECKPOINT), None)


@pytest.mark.parametrize(
    ("pooling", "expected", "label"),
    [("mean", [1.0, 1.5, 0.5], "yes"), ("max", [3.0, 2.0, 1.0], "no"), ("first", [-1.0, 1.0, 1.0], "yes")],
)
def test_the_windows_of_a_text_give_one_answer(pooling, expected, label):
    windows = [([-1.0, 1.0, 1.0], 0.5), ([3.0, 2.0, 0.0], 0.5)]
    made = task(pooling, long_text="window")
    parts = [(Example({}, 0, weight), np.asarray(logits, np.float32)) for logits, weight in windows]
    kept = made.answer({}, parts)
    assert kept.tolist() == expected and kept.dtype == np.float32
    assert made.prediction({}, kept)["label"] == label


def test_texts_that_are_cut_have_no_windows():
    with pytest.raises(UserError, match=r"task.pool_windows: .* set data.long_text=window"):
        task("max")
