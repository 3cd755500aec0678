"""Keys by the names that other libraries have for them."""

from __future__ import annotations

import pytest

from jaxlm.config.other_names import OTHER_KINDS, OTHER_NAMES
from jaxlm.config.reference import walk
from jaxlm.tasks import TASKS


@pytest.mark.parametrize(
    ("section", "name", "ours"),
    [
        ("optimizer", "lr", "optimizer.learning_rate"),
        ("train", "num_train_epochs", "train.epochs"),
        ("train", "per_device_train_batch_size", "train.batch_size"),
        ("train", "warmup_ratio", "optimizer.warmup"),
        ("train", "save_steps", "checkpoint.every"),
        ("train", "bf16", "model.dtype=bfloat16"),
        ("data", "max_seq_length", "data.max_length"),
        ("data", "batch_size", "train.batch_size"),
    ],
)
def test_names_from_elsewhere_are_known(refused, section, name, ours):
    [message] = refused(f"name: a\n{section}: {{{name}: 1}}\n")
    assert message.startswith(f"c.yaml:2: unknown key {section}.{name}; did you mean {ours}")


@pytest.mark.parametrize(
    ("name", "ours"),
    [("ner", "tagging"), ("token-classification", "tagging"), ("QA", "question_answering"), ("mlm", "masked_lm"),
     ("taging", "tagging")],
)  # fmt: skip
def test_kinds_from_elsewhere_are_known(refused, name, ours):
    [message] = refused(f"name: a\ntask: {{kind: {name}}}\n")
    assert message.endswith(f"; did you mean {ours!r}?")
    assert set(OTHER_KINDS.values()) <= set(TASKS) and not set(OTHER_KINDS) & set(TASKS)


def test_names_from_elsewhere_stand_for_keys():
    keys = {key for key, _ in walk()}
    for name, ours in OTHER_NAMES.items():
        assert ours.partition("=")[0].partition(" ")[0] in keys and f"train.{name}" not in keys
