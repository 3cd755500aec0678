"""Mistakes in mesh and batches are found before any text is read, or, where the model decides the mesh, tokenized."""

from __future__ import annotations

import pytest
from helpers.finetuning_runs import write_config
from helpers.pretraining_runs import write_pretraining

from jaxlm.config.loading import load_config
from jaxlm.errors import UserError
from jaxlm.setup.setup import make_setup
from jaxlm.tasks.base import CorpusTask, RowTask

CORPUS = "causal_lm"


@pytest.fixture
def unread(monkeypatch):
    """Opening data, which cleans and trains tokenizers, is a failure."""

    def opened(*_arguments, **_options):
        raise AssertionError("the data were opened")

    for kind in (CorpusTask, RowTask):
        monkeypatch.setattr(kind, "open", opened)


@pytest.mark.parametrize(
    "kind, changes, expected",
    [
        (CORPUS, ["mesh.preset=fsdp", "train.batch_size=12"], "train.batch_size=12: expected a multiple of 8"),
        (
            CORPUS,
            ["mesh.preset=ddp", "train.batch_size=8", "train.grad_accum_steps=2"],
            "train.batch_size=8: expected a multiple of 16",
        ),
        (CORPUS, ["mesh.preset=fsdp", "mesh.fsdp=3"], "8 devices"),
        (CORPUS, ["mesh.preset=fsdp_tp", "mesh.tensor=8"], "of size 4 cannot be split 8 ways over mesh axis tensor"),
        (CORPUS, ["mesh.preset=context", "data.max_length=36"], "mesh.context=8: rows of data.max_length=36 columns"),
        (None, ["mesh.preset=fsdp_tp", "mesh.tensor=8"], "of size 4 cannot be split 8 ways over mesh axis tensor"),
        (None, ["mesh.preset=context", "data.row_length=36"], "mesh.context=8: rows of data.row_length=36 columns"),
        (None, ["mesh.preset=ddp", "data.batch_order=balanced", "data.packing=false"], "data.batch_order=balanced"),
        (None, ["mesh.slices=3"], "slices=3"),
        (None, ["model.remat=[attention, query]"], "'query' is no activation of bert; expected .* attention, down"),
        (None, ["model.remat=some"], "model.remat"),
    ],
)
def test_before_the_data_are_opened(tmp_path, unread, kind, changes, expected):
    path = write_config(tmp_path) if kind is None else write_pretraining(tmp_path, kind)
    with pytest.raises(UserError, match=expected):
        make_setup(load_config(path, changes))


def test_before_texts_are_tokenized_where_the_model_decides_the_mesh(tmp_path, monkeypatch):
    def tokenized(*_arguments):
        raise AssertionError("texts were tokenized")

    monkeypatch.setattr(CorpusTask, "datasets", tokenized)
    config = load_config(write_pretraining(tmp_path, CORPUS), ["train.batch_size=12"])
    with pytest.raises(UserError, match=r"train.batch_size=12: expected a multiple of 8"):
        make_setup(config)


def test_a_trained_model_is_applied_whatever_its_training_batches_were(tmp_path, unread):
    config = load_config(write_pretraining(tmp_path, CORPUS), ["mesh.preset=fsdp", "train.batch_size=12"])
    with pytest.raises(AssertionError, match="the data were opened"):
        make_setup(config, splits=("validation",))
