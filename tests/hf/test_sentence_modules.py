"""sentence-transformers folders: what is read, what is refused; vectors against Transformers and the library."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.tiny_models import ENCODERS, apply, examples, pack
from helpers.torch_reference import random_config, randomise, torch_inputs

from jaxlm.data.sentence_modules import SentenceModules, read_sentence_modules
from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import HFCheckpoint, export_model, load_params
from jaxlm.models import Model

SENTENCE_6 = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling",
         "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize",
         "type": "sentence_transformers.base.modules.normalize.Normalize"},
    ],
    "1_Pooling/config.json": {"embedding_dimension": 8, "pooling_mode": "lasttoken", "include_prompt": True},
    "config_sentence_transformers.json": {"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": "query"},
    "tokenizer_config.json": {"model_max_length": 77},
}  # fmt: skip


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_what_is_written_is_read_back(tmp_path):
    for number, modules in enumerate(
        (
            SentenceModules("mean", True, {}, None, 128),
            SentenceModules("cls", False, {"query": "Q: ", "d": "D: "}, "d", 32, True),
            SentenceModules("last_token", True, {"x": "y"}, None, None),
        )
    ):
        folder = write(tmp_path / str(number), dict(modules.files(8)))
        assert read_sentence_modules(folder) == modules
    assert read_sentence_modules(write(tmp_path / "6", SENTENCE_6)) == SentenceModules(
        "last_token", True, {"query": "q: "}, "query", 77
    )


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("modules.json", [], "expected the modules Transformer, Pooling and.* found none"),
        ("modules.json", [*SENTENCE_6["modules.json"][:2], {"type": "a.Dense"}], "found Transformer, Pooling, Dense"),
        ("modules.json", {}, "expected a list"),
        ("modules.json", "{", "cannot be read as JSON"),
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "pooling max is not supported"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, r"pooling mean \+ cls is not supported"),
        ("1_Pooling/config.json", {}, "pooling none is not supported"),
        ("1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False}, "include_prompt=false"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name 'x' is none of"),
        ("config_sentence_transformers.json", {"prompts": {"x": 3}}, "prompts: expected texts by name"),
    ],
)  # fmt: skip
def test_folders_that_are_refused(name, value, problem, tmp_path):
    folder = write(tmp_path, {**SENTENCE_6, name: value})
    with pytest.raises(UserError, match=problem):
        read_sentence_modules(folder)


def test_a_folder_without_its_pooling(tmp_path):
    folder = write(tmp_path, {name: value for name, value in SENTENCE_6.items() if "Pooling" not in name})
    with pytest.raises(UserError, match="no such file; modules.json asks for it"):
        read_sentence_modules(folder)


@pytest.mark.parity
@pytest.mark.parametrize("family", ENCODERS)
def test_vectors_are_those_of_transformers_and_of_sentence_transformers(family, tmp_path, transformers):
    """By hand over Transformers' states; the library, where it is installed, loads the export."""
    import torch

    theirs = randomise(transformers.AutoModel.from_config(random_config(family, 0)))
    theirs.save_pretrained(tmp_path / "in")
    checkpoint = HFCheckpoint(tmp_path / "in")
    model = Model(checkpoint.family, checkpoint.model_config, "embedding", 0)
    params = load_params(checkpoint, model, jax.random.key(0)).params
    texts = examples(6, seed=0)
    batch = pack([texts[:3], texts[3:]], length=27, slots=3, pad_id=model.config.pad_id or 0)
    inputs = torch_inputs(theirs, texts)
    with torch.no_grad():
        states = theirs(**inputs).last_hidden_state.numpy()
    mask = inputs["attention_mask"].numpy()[:, :, None]
    first = apply(model, params, batch).reshape(6, -1)
    np.testing.assert_allclose(first, states[:, 0], atol=1e-4, rtol=0)
    del batch["slot_positions"]
    batch["weights"] = np.ones((2, 3), np.float32)
    mean = np.asarray(jax.jit(model.apply)(params, batch)).reshape(6, -1)
    np.testing.assert_allclose(mean, (states * mask).sum(axis=1) / mask.sum(axis=1), atol=1e-4, rtol=0)

    export_model(tmp_path / "out", model, params)
    write(tmp_path / "out", dict(SentenceModules("mean", True, {}, None, 16).files(model.width)))
    back = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        np.testing.assert_array_equal(back(**inputs).last_hidden_state.numpy(), states)
    assert HFCheckpoint(tmp_path / "out").head == "embedding"


@pytest.mark.parity
def test_a_run_gives_sentence_transformers_the_same_vectors(tmp_path):
    """Prompts, lengths and pooling are read from the exported folder."""
    pytest.importorskip("sentence_transformers")
    from helpers.embedding_runs import write_embedding
    from helpers.finetuning_runs import read_jsonl, run, write_jsonl
    from sentence_transformers import SentenceTransformer

    task = {"pooling": "cls", "normalize": False, "prompts": {"anchor": "query: "}}
    assert run("finetune", "--config", write_embedding(tmp_path, task, train={"epochs": 1})) == 0
    made = tmp_path / "runs/tiny"
    texts = ["where is anna", "oslo is 7 miles off and more and more and more and more and more", "Größe 😀"]
    asked = write_jsonl(tmp_path / "in.jsonl", [{"anchor": text} for text in texts])
    assert run("predict", "--run", made, "--input", asked, "--output", tmp_path / "out.jsonl") == 0
    ours = np.asarray([row["prediction"]["vector"] for row in read_jsonl(tmp_path / "out.jsonl")])
    model = SentenceTransformer(str(made / "model"), device="cpu")
    theirs = model.encode(texts, prompt_name="anchor")
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert model.max_seq_length == 32 and "torch" in sys.modules
    # And back: a folder that it writes is read here.
    model.save(str(tmp_path / "saved"))
    plain = write_jsonl(tmp_path / "plain.jsonl", [{"text": f"query: {text}"} for text in texts])
    assert run("predict", "--run", tmp_path / "saved", "--input", plain, "--output", tmp_path / "b.jsonl") == 0
    again = np.asarray([row["prediction"]["vector"] for row in read_jsonl(tmp_path / "b.jsonl")])
    np.testing.assert_allclose(again, theirs, atol=1e-5, rtol=0)
