"""Runs that train few parameters: what is trained and what stays, resuming, meshes, and what is exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.bases import write_base
from helpers.finetuning_runs import read_jsonl, run, write_config
from safetensors.numpy import load_file, save_file

from jaxlm.config.loading import load_config
from jaxlm.config.schema import Config
from jaxlm.setup.setup import make_setup
from jaxlm.training import manifest
from jaxlm.training.stages import scratch_config

LORA = {"lora": {"rank": 2, "dropout": 0.1, "targets": ["q", "v"]}}
LAYER = "bert.encoder.layer.1.attention.self"


def config(folder: Path, name: str, model: dict[str, Any], **sections: Any) -> Path:
    return write_config(
        folder,
        name=name,
        **{
            "model": {"family": None, "config": {}, "train_tokenizer": None, "init": str(folder / "base"), **model},
            "data": {"max_shapes": 1},
            "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.1},
            "checkpoint": {"every": 2, "keep": 9},
            **sections,
        },
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    write_base(folder / "base")
    assert run("finetune", "--config", config(folder, "lora", LORA)) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    names = ("model/model.safetensors", "adapter/adapter_model.safetensors", "predictions/test.jsonl")
    return {name: (folder / "runs/lora" / name).read_bytes() for name in names}


def test_the_base_stays_and_the_summary_counts_what_is_trained(finished):
    summary = json.loads((finished / "runs/lora/summary.json").read_text())
    head, adapters = 32 * 32 + 32 + 32 * 2 + 2, 2 * 2 * (32 * 2 + 2 * 32)
    assert summary["model"]["trained_parameters"] == head + adapters
    assert summary["model"]["frozen_parameters"] == summary["model"]["parameters"] - head
    base, merged = (load_file(finished / name / "model.safetensors") for name in ("base", "runs/lora/model"))
    adapter = load_file(finished / "runs/lora/adapter/adapter_model.safetensors")
    changed = [f"bert.encoder.layer.{i}.attention.self.{name}" for i in range(2) for name in ("query", "value")]
    for key in base.keys() & merged.keys():
        module, equal = key.removesuffix(".weight"), np.array_equal(base[key], merged[key])
        assert equal == (module not in changed), key
    for module in changed:
        a, b = (adapter[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        assert a.shape == (2, 32) and b.shape == (32, 2) and np.abs(b).max() > 1e-3
        expected = base[f"{module}.weight"] + 16 / 2 * b @ a
        np.testing.assert_allclose(merged[f"{module}.weight"], expected, rtol=1e-4, atol=1e-6)
    saved = [key for key in adapter if "lora_" not in key]
    assert sorted(saved) == [
        f"base_model.model.{module}.{part}"
        for module in ("bert.pooler.dense", "classifier")
        for part in ("bias", "weight")
    ]


def test_checkpoints_hold_what_is_trained(finished):
    step = max((finished / "runs/lora/checkpoints").iterdir(), key=lambda path: int(path.name))
    leaves = " ".join(manifest.read(step)["leaves"])
    assert "q_lora_a" in leaves and "head" in leaves and "tokens" not in leaves and "/k" not in leaves


def test_the_merged_model_scores_and_predicts_as_the_run_did(finished, capsys):
    summary = json.loads((finished / "runs/lora/summary.json").read_text())
    capsys.readouterr()
    assert run("evaluate", "--run", finished / "runs/lora") == 0
    assert f"{summary['scores']['test']['loss']:.4f}" in capsys.readouterr().out
    output = finished / "out.jsonl"
    assert run("predict", "--run", finished / "runs/lora", "--input", finished / "test.jsonl", "--output", output) == 0
    expected = read_jsonl(finished / "runs/lora/predictions/test.jsonl")
    for one, other in zip(read_jsonl(output), expected, strict=True):
        assert one["prediction"]["label"] == other["prediction"]["label"]
        scores = [row["prediction"]["scores"]["pos"] for row in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_a_run_that_lost_its_end_resumes_bit_for_bit(finished, capsys):
    """The same files as undisturbed: the base is read again, the adapters are the checkpoint's."""
    before, folder = contents(finished), finished / "runs/lora"
    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    for step in steps[2:]:
        shutil.rmtree(folder / "checkpoints" / str(step))
    for name in ("model", "adapter", "predictions"):
        shutil.rmtree(folder / name)
    (folder / "summary.json").unlink()
    path, base = config(finished, "lora", LORA), finished / "base/model.safetensors"
    tensors = load_file(base)
    save_file({**tensors, f"{LAYER}.key.bias": tensors[f"{LAYER}.key.bias"] + 1}, base)
    assert run("finetune", "--config", path) == 2
    assert "the parameters that are frozen are not those that the run began with" in capsys.readouterr().err
    save_file(tensors, base)
    assert run("finetune", "--config", path) == 0
    assert f"resumed at {steps[1]}" in capsys.readouterr().err
    assert contents(finished) == before


@pytest.mark.parametrize(
    "model, words",
    [
        ({"lora": {"rank": 0}}, "model.lora.rank"),
        ({"lora": {"targets": ["query"]}}, "bert has no kernel 'query'; did you mean 'q'?"),
        ({"lora": {"targets": []}}, "expected at least one kernel"),
        ({"lora": {}, "bitfit": True}, "lora and bitfit: expected one of them"),
        ({"ia3": {"feedforward": ["up"]}}, "expected some of model.ia3.targets, found trunk/stack/layers/up"),
        ({"base": "somewhere"}, "is a whole model, and no adapter over another"),
        ({"lora": {}, "freeze": ["embeddings"]}, "with lora all but what it trains is frozen; leave freeze out"),
        ({"bitfit": True, "reinit_layers": 1}, "with bitfit the layers are frozen; new ones would learn nothing"),
        ({"ia3": {}, "mixout": 0.3}, "the kernels are not trained with lora, ia3 or bitfit"),
        ({"frozen_dtype": "int8"}, "model.frozen_dtype=int8: no parameter is frozen whole"),
        ({"mixout": 0.5, "freeze": ["trunk"]}, "model.freeze holds all dense layers of the trunk"),
    ],
)
def test_what_does_not_apply_is_refused_in_words(finished, capsys, model, words):
    path = config(finished, "refused", model)
    assert run("finetune", "--config", path, "--dry-run") == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("targets", "inputs"), [(["k", "v"], 0), (["all"], 1), (["mlp", "v"], 1), (["k", "v", "down"], 1)]
)
def test_of_other_targets_the_feedforward_kernels_are_those_among_them(finished, targets, inputs):
    loaded = load_config(config(finished, "factors", {"ia3": {"targets": targets}}), [])
    suffixes = list(make_setup(loaded, splits=("train",)).adapters.targets.values())
    assert suffixes.count(("ia3_input_scale",)) == inputs and len(suffixes) > inputs


def test_a_baseline_from_scratch_has_nothing_of_a_pretrained_model(finished):
    model = {"lora": {}, "frozen_dtype": "int8"}, {"mixout": 0.5, "reinit_layers": 1, "freeze": ["embeddings"]}
    for settings in model:
        loaded = load_config(config(finished, "few", settings, train={"scratch_baseline": True}), [])
        fresh = scratch_config(loaded)
        again = Config.model_validate(fresh.model_dump())  # a run that is resumed reads it again
        assert make_setup(again, splits=("train",)).split.whole == frozenset()


def test_adapters_of_a_model_without_dropout_have_one_of_their_own(finished):
    path = config(finished, "drop", {"lora": {"dropout": 0.1}}, train={"r_drop": 1.0})
    assert run("finetune", "--config", path, "--dry-run") == 0
    assert run("finetune", "--config", path, "--dry-run", "model.lora.dropout=0") == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.layer_decay=0.9", "beside adapters, all layers stay frozen"),
        ("train.unfreeze_every=3", "beside adapters, all layers stay frozen"),
        ("train.fgm=1.0", "it moves the token embeddings along their gradient, and they are frozen"),
    ],
)
def test_what_needs_all_layers_is_refused_beside_adapters(finished, capsys, override, words):
    path = config(finished, "refused", {"lora": {}})
    assert run("finetune", "--config", path, "--dry-run", override) == 2
    assert words in capsys.readouterr().err


def test_random_parameters_are_not_frozen(tmp_path, capsys):
    path = write_config(tmp_path, model={**write_random(), "lora": {}})
    assert run("finetune", "--config", path) == 2
    assert "model.lora: expected model.init" in capsys.readouterr().err


def write_random() -> dict[str, Any]:
    sizes = {"num_layers": 1, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "max_positions": 64}
    return {"family": "bert", "config": sizes, "train_tokenizer": {"vocab_size": 200}}


@pytest.mark.slow
def test_meshes_and_micro_batches_change_nothing(finished):
    """The masks of the adapters' dropout included."""
    model = {"lora": {**LORA["lora"], "dora": True}}
    losses: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    mesh = ["mesh.preset=fsdp_tp", "mesh.fsdp=2", "mesh.tensor=2", "mesh.data=2", "model.unroll=1"]
    for name, overrides in {"one": [], "split": mesh}.items():
        path = config(finished, name, model, train={"batch_size": 16, "epochs": 1})
        assert run("finetune", "--config", path, *overrides) == 0
        log = read_jsonl(finished / "runs" / name / "metrics.jsonl")
        losses[name] = [row["loss"] for row in log if row["kind"] == "train"]
        weights[name] = load_file(finished / "runs" / name / "adapter/adapter_model.safetensors")
    np.testing.assert_allclose(losses["split"], losses["one"], atol=2e-5)
    for key, value in weights["one"].items():
        np.testing.assert_allclose(weights["split"][key], value, atol=3e-4, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["bitfit", "ia3"])
def test_biases_or_factors_alone(finished, way):
    path = config(finished, way, {way: True} if way == "bitfit" else {way: {}})
    assert run("finetune", "--config", path) == 0
    base, merged = (load_file(finished / name / "model.safetensors") for name in ("base", f"runs/{way}/model"))
    changed = {key for key in base.keys() & merged.keys() if not np.array_equal(base[key], merged[key])}
    assert changed
    for key in changed:
        named = key.endswith(".bias") if way == "bitfit" else any(
            part in key for part in ("self.key", "self.value", f"{key.split('.')[3]}.output.dense")
        )  # fmt: skip
        assert named or key.startswith(("classifier", "bert.pooler")), key
    summary = json.loads((finished / "runs" / way / "summary.json").read_text())
    assert summary["model"]["trained_parameters"] < summary["model"]["parameters"] / 5
    assert (finished / "runs" / way / "adapter").is_dir() == (way == "ia3")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "mesh"), [("bfloat16", "ddp"), ("int8", "fsdp_tp")])
def test_a_base_held_in_less(dtype, mesh, finished):
    path = config(finished, dtype, {**LORA, "frozen_dtype": dtype})
    assert run("finetune", "--config", path, f"mesh.preset={mesh}") == 0
    base, merged = (load_file(finished / name / "model.safetensors") for name in ("base", f"runs/{dtype}/model"))
    in_8_bits = 0
    for key in base.keys() & merged.keys():
        assert merged[key].dtype == np.float32
        if key.startswith(("bert.pooler", "classifier")) or key.endswith(("query.weight", "value.weight")):
            continue
        rounded = np.asarray(jnp.asarray(base[key]).astype(jnp.bfloat16).astype(jnp.float32))
        if dtype == "int8" and ".encoder." in key and base[key].ndim == 2:  # [outputs, inputs]
            step = np.abs(base[key]).max(1, keepdims=True) / 127
            rounded, in_8_bits = np.round(base[key] / step) * step, in_8_bits + 1
        np.testing.assert_allclose(merged[key], rounded, rtol=1e-6 if dtype == "int8" else 0)
    assert in_8_bits == (0 if dtype == "bfloat16" else 8)
    assert run("evaluate", "--run", finished / f"runs/{dtype}") == 0
