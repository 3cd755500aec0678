"""What a user calls a model, and is not one: a mistyped path, a folder of another kind, a pointer of Git LFS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxlm.config.schema import Config
from jaxlm.errors import RunFailure, UserError
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.hf.hub import find_model_dir
from jaxlm.hf.tensors import Tensors
from jaxlm.inference.evaluate import evaluate_run
from jaxlm.setup.tokenizer import open_checkpoint
from jaxlm.tokenizer.tokenizer import load_tokenizer

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n"
BERT = {
    "model_type": "bert", "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 8, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/tiny").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("name", ["runs/tny", "./runs/tny", "run/tiny/", "runs/other", "rums", "tiny"])
def test_a_mistyped_path_is_named_before_any_hub_is_asked(folder, name):
    with pytest.raises((UserError, RunFailure)) as caught:
        find_model_dir(name, key="model.init")
    message = str(caught.value)
    if name == "run/tiny/":  # no folder called `run` is here: as well the name of a repository
        return
    assert isinstance(caught.value, UserError) and f"model.init: no directory {name}" in message
    assert f"working directory, {folder}" in message
    near = {"runs/other": "; runs holds: tiny", "rums": "did you mean 'runs'?"}
    assert near.get(name, "did you mean 'runs/tiny'?") in message


def test_with_a_revision_the_hub_is_asked(folder):
    with pytest.raises(RunFailure, match="the hub could not be reached"):
        find_model_dir("runs/tny", key="model.init", revision="main")


def test_a_run_that_is_not_there(folder):
    with pytest.raises(UserError, match=r"--run runs/tny: no config\.yaml; .*did you mean 'runs/tiny'\?.*working dir"):
        evaluate_run("runs/tny")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("0_Transformer/config.json", "did you mean .*0_Transformer"),
        ("adapter_config.json", "an adapter of PEFT: it is read as model.init"),
        ("model.gguf", "GGUF files are not read"),
    ],
)
def test_folders_of_another_kind(tmp_path, file, message):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(UserError, match=f"no config.json; expected an HF-format model directory.*{message}"):
        HFCheckpoint(tmp_path).config  # noqa: B018


def test_a_family_that_is_not_the_checkpoints(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    for family, fits in (("bert", True), ("gpt2", False)):
        config = Config.model_validate({"name": "a", "model": {"init": str(tmp_path), "family": family}})
        if fits:
            assert open_checkpoint(config) is not None
            continue
        with pytest.raises(
            UserError, match=r"model\.family=gpt2: the checkpoint .* is a bert; leave model\.family out"
        ):
            open_checkpoint(config)


def test_pointers_of_git_lfs(tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "spiece.model"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(BERT))
        (folder / name).write_text(LFS)
        read = {"config.json": lambda f: HFCheckpoint(f).config, "model.safetensors": lambda f: Tensors(f).files}
        with pytest.raises(UserError, match=rf"{name}: a pointer of Git LFS .*`git lfs pull`") as caught:
            read.get(name, load_tokenizer)(folder)
        assert str(caught.value).count(str(folder)) == 1
