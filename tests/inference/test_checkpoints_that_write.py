"""Checkpoints of other makers that write texts: where a text ends, and what cannot write."""

from __future__ import annotations

import json

import pytest
from helpers.hf_folders import write_checkpoint
from helpers.tiny_models import tiny
from safetensors.numpy import load_file, save_file

from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.inference.predict import open_predictor
from jaxlm.inference.trained import checkpoint_config, open_trained
from jaxlm.models import FAMILIES
from jaxlm.setup.setup import make_setup
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.training import train_tokenizer


@pytest.fixture
def writer(tmp_path):
    """A Llama with a character vocabulary, whose end of text is id 2; its last matrix is its own."""
    config = {"model_type": "llama", **FAMILIES["llama"].to_hf(tiny("llama", tied=False).config)}
    write_checkpoint(tmp_path, {"architectures": ["LlamaForCausalLM"], **config}, "causal_lm")
    train_tokenizer(["a fox"], TokenizerTrainingConfig(type="char", family="llama")).save(tmp_path)
    return tmp_path


def say(directory, name: str, **entries) -> None:
    path = directory / name
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | entries))


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        (None, None, (2,)),
        (5, None, (2, 5)),
        ([5, 6], None, (2, 5, 6)),
        ([5, 6], 7, (2, 7)),
        (5, [7, 8], (2, 7, 8)),
        (5, {}, (2, 5)),
    ],
)
def test_any_of_the_ids_that_the_files_name_ends_a_text(config, generation, ends, writer):
    say(writer, "config.json", eos_token_id=config)
    if generation is not None:
        say(writer, "generation_config.json", **({} if generation == {} else {"eos_token_id": generation}))
    task = make_setup(checkpoint_config(str(writer), None), splits=()).task
    assert task.generation is not None and task.generation.eos_ids == ends
    named = {ends[-1]} if generation is None or generation == {} else set(ends[1:])
    exported = FAMILIES["llama"].to_hf(HFCheckpoint(writer).model_config)["eos_token_id"]
    assert config is None or named <= set(exported if isinstance(exported, (list, tuple)) else [exported])


@pytest.mark.parametrize("text", ["[]", "{", '{"eos_token_id": "x"}', '{"eos_token_id": [1, -1]}'])
def test_a_generation_config_of_another_form_is_refused(text, writer):
    (writer / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"generation_config\.json: "):
        HFCheckpoint(writer).config  # noqa: B018


def test_a_model_whose_last_matrix_is_absent_does_not_write(writer):
    tensors = load_file(writer / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, writer / "model.safetensors")
    with pytest.raises(UserError, match=r"no trained head \(head/unembed are missing\)"):
        open_trained(str(writer), checkpoint_config(str(writer), None))


@pytest.mark.parametrize(
    ("said", "length"), [({"model_max_length": 20}, 20), ({"model_max_length": 10**30}, 24), ({}, 24)]
)
def test_an_encoder_reads_as_many_tokens_as_its_tokenizer_says(said, length, tmp_path):
    config = {"model_type": "bart", **FAMILIES["bart"].to_hf(tiny("bart").config)}  # of 24 positions
    write_checkpoint(tmp_path, {"architectures": ["BartForConditionalGeneration"], **config}, "seq2seq_lm")
    say(tmp_path, "tokenizer_config.json", **said)
    assert checkpoint_config(str(tmp_path), None).data.max_length == length


def test_a_prompt_too_long_for_the_files_max_length_is_told_so(writer):
    say(writer, "generation_config.json", max_length=4)
    predictor = open_predictor(str(writer))
    [row] = predictor.predict([{"text": "a fox a fox"}], "t")
    assert "expected at most 3, since generation.max_length=4 counts prompt and text together" in row["error"]
