"""Checkpoints that are not as they should be: read as they are meant, or refused with a line that says why."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from helpers.hf_folders import load_checkpoint, write_checkpoint
from helpers.tiny_models import tiny
from safetensors.numpy import load_file, save_file

from jaxlm.data.label_names import hf_label_names
from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.hf.convert import inspect
from jaxlm.models import FAMILIES


@pytest.fixture
def classifier(tmp_path):
    """A BERT classifier of two labels."""
    write(tmp_path, "bert", "classification")
    return tmp_path


def write(directory: Path, family: str, head: str, **changes: Any) -> None:
    config = {"model_type": family, **FAMILIES[family].to_hf(tiny(family).config), **changes}
    architecture = FAMILIES[family].heads[head].architecture
    write_checkpoint(directory, {"architectures": [architecture], **config}, head)


def change(directory: Path, **entries: Any) -> None:
    """Sets entries of config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    return load_file(directory / "model.safetensors")


def store(directory: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, directory / "model.safetensors")


# Tensors.


def test_a_trunk_without_its_prefix_is_read_beside_a_head(classifier):
    _, before = load_checkpoint(classifier, "classification", 2)
    store(classifier, {key.removeprefix("bert."): value for key, value in tensors_of(classifier).items()})
    _, after = load_checkpoint(classifier, "classification", 2)
    assert after.initialized == ()
    np.testing.assert_array_equal(after.params["trunk"]["tokens"], before.params["trunk"]["tokens"])
    np.testing.assert_array_equal(after.params["head"]["dense"], before.params["head"]["dense"])


@pytest.mark.parametrize("old", ["gamma", "beta"])
def test_old_and_new_names_of_a_norm_in_one_file_are_refused(old, classifier):
    tensors = tensors_of(classifier)
    new = "bert.embeddings.LayerNorm." + {"gamma": "weight", "beta": "bias"}[old]
    store(classifier, tensors | {f"bert.embeddings.LayerNorm.{old}": tensors[new] + 1})
    with pytest.raises(
        UserError, match=rf"{classifier}: tensors '.*LayerNorm.*' and '.*LayerNorm.*' both mean '{new}'"
    ):
        load_checkpoint(classifier, "classification", 2)


def test_beside_a_whole_file_an_index_is_not_read(classifier, caplog):
    tensors = tensors_of(classifier)
    save_file({key: value * 0 for key, value in tensors.items()}, classifier / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (classifier / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _, loaded = load_checkpoint(classifier, "classification", 2)
    np.testing.assert_array_equal(loaded.params["trunk"]["tokens"], tensors["bert.embeddings.word_embeddings.weight"])
    assert "model.safetensors.index.json; the first is read, the index is not" in caplog.text


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ml_dtypes.float8_e4m3fn, "F8_E4M3"), (ml_dtypes.float8_e5m2, "F8_E5M2"), (np.int8, "I8"), (np.uint8, "U8"),
        (np.int64, "I64"), (bool, "BOOL"), (np.complex64, "C64"),
    ],
)  # fmt: skip
def test_tensors_of_other_types_than_floats_are_refused_by_name(kind, name, classifier):
    tensors = tensors_of(classifier)
    key = "bert.encoder.layer.0.output.dense.weight"
    store(classifier, tensors | {key: tensors[key].astype(kind)})
    with pytest.raises(UserError, match=rf"tensor {key} is of type {name}; expected F64, F32, F16, BF16"):
        load_checkpoint(classifier, "classification", 2)


def test_constants_with_values_of_their_own_are_refused(classifier):
    ids = np.arange(24)[None]
    store(classifier, tensors_of(classifier) | {"bert.embeddings.position_ids": ids})
    _, loaded = load_checkpoint(classifier, "classification", 2)
    assert loaded.ignored == ("bert.embeddings.position_ids",)
    store(classifier, tensors_of(classifier) | {"bert.embeddings.position_ids": ids[:, ::-1].copy()})
    with pytest.raises(UserError, match="position_ids has other values than config.json means"):
        load_checkpoint(classifier, "classification", 2)


def test_a_head_that_config_json_names_and_the_file_lacks_is_warned_about(tmp_path, caplog):
    write(tmp_path, "llama", "causal_lm", tie_word_embeddings=False)
    tensors = tensors_of(tmp_path)
    del tensors["lm_head.weight"]
    store(tmp_path, tensors)
    _, loaded = load_checkpoint(tmp_path, "causal_lm")
    assert loaded.initialized == ("head/unembed",)
    [record] = [record for record in caplog.records if "head/unembed" in record.message]
    assert record.levelno == logging.WARNING


# config.json.


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"hidden_size": "16"}, "hidden_size: expected a whole number, found '16'"),
        ({"hidden_size": 16.0}, "hidden_size: expected a whole number, found 16.0"),
        ({"num_hidden_layers": True}, "num_hidden_layers: expected a whole number, found True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0: expected 1 to 10000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: expected 1 to 10000"),
        ({"num_attention_heads": -2}, "num_attention_heads=-2: expected 1 to"),
        ({"vocab_size": 10**40}, "vocab_size=a number of more than 30 digits: expected 1 to"),
        ({"vocab_size": [64]}, "vocab_size: expected a whole number, found \\[64\\]"),
        ({"intermediate_size": {"a": 1}}, "intermediate_size: expected a whole number"),
        ({"pad_token_id": 64}, "pad_token_id=64 is not in the vocabulary of 64"),
        ({"pad_token_id": -1}, "pad_token_id=-1: expected 0 to"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps: expected a number, found '1e-12'"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps=nan: expected 0 or more"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob=1.5: expected 0 or more, below 1"),
        ({"hidden_act": ["gelu"]}, r"hidden_act=\['gelu'\] is not supported"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings: expected true or false, found 'false'"),
        ({"architectures": "BertModel"}, "architectures: expected a list of class names"),
        ({"model_type": ["bert"]}, "expected an object with a model_type"),
        ({"quantization_config": {"bits": 4}}, "quantized weights are not supported"),
    ],
)
def test_values_of_the_wrong_type_or_size_are_refused(entries, message, classifier):
    change(classifier, **entries)
    with pytest.raises(UserError, match=message):
        HFCheckpoint(classifier).model_config  # noqa: B018


@pytest.mark.parametrize(
    ("family", "entries", "message"),
    [
        ("llama", {"rope_scaling": "linear"}, "rope_scaling and rope_parameters: expected an object"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor=0: expected a number above 0"),
        ("llama", {"rope_scaling": {"rope_type": ["linear"]}}, r"rope_type \['linear'\] is not supported"),
        ("llama", {"rope_theta": "1e4"}, "rope_theta: expected a number, found '1e4'"),
        ("llama", {"eos_token_id": [1, "2"]}, "eos_token_id: expected whole numbers, found '2'"),
        ("qwen2", {"layer_types": "full"}, "layer_types: expected a list"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": "8"}, "sliding_window: expected a whole number"),
        ("gpt2", {"n_inner": 0.5}, "n_inner: expected a whole number"),
        ("t5", {"feed_forward_proj": 3}, "feed_forward_proj: expected a word, found 3"),
        ("t5", {"decoder_start_token_id": 10**6}, "decoder_start_token_id=1000000 is not in the vocabulary"),
        ("lstm", {"num_layers": None, "hidden_size": "x"}, "expected a whole number, found 'x'"),
    ],
)
def test_other_families_refuse_them_too(family, entries, message):
    with pytest.raises(UserError, match=message):
        FAMILIES[family].from_hf({**FAMILIES[family].to_hf(tiny(family).config), **entries})


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"model_type": "bert", "vocab_size": ' + "9" * 5000 + "}", "\xff", "[]"]
)
def test_files_that_are_no_config_are_refused(text, classifier):
    (classifier / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.json: "):
        HFCheckpoint(classifier).config  # noqa: B018


@pytest.mark.parametrize(
    "index", ["[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "[" * 9999]
)
def test_files_that_are_no_index_are_refused(index, classifier):
    (classifier / "model.safetensors").unlink()
    (classifier / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"index\.json: "):
        HFCheckpoint(classifier).shapes  # noqa: B018


# Label names.

NAMES = ("neg", "neutral", "pos")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"id2label": {"0": "neg", "2": "pos", "1": "neutral"}}, NAMES),
        ({"id2label": list(NAMES)}, NAMES),
        ({"id2label": {"neg": 0, "pos": 2, "neutral": 1}}, NAMES),
        ({"id2label": {"0": 5, "1": 7}}, ("5", "7")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {}, "num_labels": 1, "problem_type": "regression"}, ("LABEL_0",)),
        ({}, ("LABEL_0", "LABEL_1")),
    ],
)
def test_label_names_are_read_however_config_json_has_them(config, names):
    assert hf_label_names(config, placeholders=True) == names
    assert hf_label_names(config) == (None if "LABEL_0" in names else names)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "id2label: the name 'a' stands for more than one label"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label: expected the ids 0 to 1, each once; found 0, 2"),
        ({"id2label": {"a": 1, "b": 1}}, "id2label: expected the ids 0 to 1"),
        ({"id2label": {"0": "a", "x": "b"}}, "id2label: expected ids as keys, found 0, x"),
        ({"id2label": {"0": None, "1": "b"}}, "id2label: expected a name for label 0, found None"),
        ({"id2label": ["a", ["b"]]}, r"id2label: expected a name for label 1, found \['b'\]"),
        ({"id2label": "ab"}, "id2label: expected an object of ids and names"),
        ({"num_labels": "3"}, "num_labels: expected a whole number"),
        ({"num_labels": 3, "problem_type": "regression"}, "problem_type=regression with 3 outputs is not supported"),
    ],
)
def test_label_names_that_mean_nothing_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        hf_label_names(config)


def test_inspect_counts_the_outputs_of_a_head_without_names(classifier):
    tensors = tensors_of(classifier)
    for key, size in (("classifier.weight", (3, 16)), ("classifier.bias", (3,))):
        tensors[key] = np.zeros(size, np.float32)
    store(classifier, tensors)
    change(classifier, num_labels=3)
    assert "labels: none named" in inspect(str(classifier)) and "absent" not in inspect(str(classifier))
