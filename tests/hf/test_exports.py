"""Exports that others can use at once: padding, lengths, labels; and what `convert export` leaves when it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.tiny_models import tiny, weights
from helpers.tokenizer_folders import ids

from jaxlm.config.schema import Config
from jaxlm.errors import RunFailure, UserError
from jaxlm.hf import convert
from jaxlm.hf.checkpoint import export_model
from jaxlm.models import Model
from jaxlm.setup.model import model_side
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.saving import ModelSide
from jaxlm.tokenizer.tokenizer import load_tokenizer
from jaxlm.tokenizer.training import train_tokenizer

TEXTS = ["a quick brown fox jumps over the lazy dog"] * 4


def saved(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))


# Tokenizers.


@pytest.mark.parametrize(
    ("kind", "family", "pad"),
    [
        ("char", "gpt2", "<|endoftext|>"),
        ("char", "llama", "</s>"),
        ("wordpiece", None, "[PAD]"),
        ("char", "t5", "<pad>"),
    ],
)
def test_exported_tokenizers_can_fill_batches(kind, family, pad, tmp_path):
    settings = {
        "type": kind,
        **({} if family is None else {"family": family}),
        **({} if kind == "char" else {"vocab_size": 64}),
    }
    tokenizer = train_tokenizer(TEXTS, TokenizerTrainingConfig(**settings))
    tokenizer.save(tmp_path, ModelSide(None, positions=24, trained_length=16, padding_side="left"))
    config = saved(tmp_path)
    assert config["pad_token"] == pad and config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (config["model_max_length"], config["padding_side"]) == (24, "left")
    again = load_tokenizer(tmp_path)
    assert again.pad_id == tokenizer.id(pad) and ids(again, TEXTS[0]) == ids(tokenizer, TEXTS[0])
    # As a resumed run exports it, whose tokenizer was saved before.
    again.save(tmp_path / "again", ModelSide(None, positions=24, trained_length=16, padding_side="right"))
    assert saved(tmp_path / "again") == config


@pytest.mark.parametrize(
    ("given", "positions", "expected"),
    [
        (None, 512, 512),
        (128, 512, 128),
        (32, 512, 64),
        (1024, 512, 512),
        (10**30, 512, 512),
        (None, 10**6, 64),
        (512, 10**6, 512),
    ],
)
def test_exported_tokenizers_cut_texts_to_what_the_model_reads(given, positions, expected, tmp_path):
    train_tokenizer(TEXTS, TokenizerTrainingConfig(vocab_size=64)).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**saved(tmp_path), "model_max_length": given}))
    side = ModelSide(None, positions=positions, trained_length=64, padding_side="right")
    load_tokenizer(tmp_path).save(tmp_path / "out", side)
    assert saved(tmp_path / "out")["model_max_length"] == expected


def test_what_a_model_says_of_its_tokenizer():
    config = Config.model_validate({"name": "x", "task": {"kind": "classification"}, "data": {"max_length": 20}})
    for family, head, length, side in (
        ("bert", "classification", 24, "right"), ("gpt2", "causal_lm", 24, "left"), ("lstm", "causal_lm", 20, "left"),
    ):  # fmt: skip
        model = tiny(family)
        found = model_side(Model(model.family, model.config, head, 2), config)
        longest = found.positions if found.positions < 10**6 else found.trained_length
        assert (longest, found.padding_side, found.pad_id) == (length, side, model.config.pad_id)


# Labels.


def test_labels_of_one_name_are_not_exported(tmp_path):
    model = tiny("bert")
    model = Model(model.family, model.config, "classification", 2)
    with pytest.raises(UserError, match="'a' stands for more than one label"):
        export_model(tmp_path / "out", model, weights(model), {"id2label": {"0": "a", "1": "a"}})
    assert not (tmp_path / "out").exists()


def test_the_weights_may_be_read_by_whom_the_umask_says(tmp_path):
    model = tiny("bert")
    export_model(tmp_path / "out", model, weights(model))
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


# `convert export`.


def test_an_export_that_fails_leaves_nothing_and_can_be_run_again(tmp_path, monkeypatch):
    source, target = tmp_path / "model", tmp_path / "new" / "out"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        (source / name).write_text("{}")
    copied = shutil.copytree

    def full(source: Path, target: Path, **options: Any) -> None:
        copied(source, target, **options)
        (target / "model.safetensors").unlink()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "copytree", full)
    with pytest.raises(RunFailure, match="No space left"):
        convert.export_run(str(source), target)
    assert list(target.parent.iterdir()) == []
    (target.parent / ".out.partial").mkdir()  # of an export that was killed
    monkeypatch.setattr(convert, "copytree", copied)
    target.mkdir()
    convert.export_run(str(source), target)
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(UserError, match="exists and is not empty"):
        convert.export_run(str(source), target)


# Transformers.


@pytest.mark.parity
@pytest.mark.parametrize(("family", "kind"), [("gpt2", "gpt2"), ("llama", "llama"), ("bert", "bert")])
def test_a_pipeline_batches_and_cuts_with_an_export(family, kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    from jaxlm.models.base import override

    tokenizer = train_tokenizer(TEXTS, TokenizerTrainingConfig(type="char", family=kind))
    model = tiny(family)
    pad = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    model = Model(model.family, override(model.config, {"pad_id": pad}), "classification", 2)
    params = jax.tree.map(lambda x: x * 5, weights(model))
    export_model(tmp_path, model, params, {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}})
    tokenizer.save(tmp_path, ModelSide(pad, model.config.max_positions, 16, "right"))
    classify = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")
    texts = ["a fox", "dog", TEXTS[0] * 9, "the lazy"]
    together = classify(texts, batch_size=4, truncation=True)
    alone = [classify(text, truncation=True)[0] for text in texts]
    assert [answer["label"] for answer in together] == [answer["label"] for answer in alone]
    np.testing.assert_allclose(*([answer["score"] for answer in answers] for answers in (together, alone)), rtol=1e-4)
