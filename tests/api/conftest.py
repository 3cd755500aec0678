"""Models that no training made: a classifier, a sentence encoder and a writer, in HF format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.untrained_models import write_classifier, write_model

import jaxlm
from jaxlm.data.sentence_modules import SentenceModules


@pytest.fixture(scope="session")
def classifier(tmp_path_factory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def loaded(classifier) -> jaxlm.LoadedModel:
    return jaxlm.load(classifier)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    directory = write_model(tmp_path_factory.mktemp("encoder"), "bert", "embedding", "BertModel")
    width = json.loads((directory / "config.json").read_text())["hidden_size"]
    for name, text in SentenceModules("mean", True, {}, None, 32).files(width).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory


@pytest.fixture(scope="session")
def writer(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("writer"), "llama", "causal_lm", "LlamaForCausalLM")
