"""A real pretrained encoder on real text: packing changes nothing, and Transformers gives the exported answers."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import pytest
import yaml
from helpers.finetuning_runs import read_jsonl, run

from jaxlm.config.schema import Config
from jaxlm.inference.trained import make_evaluator
from jaxlm.setup.setup import make_setup


@pytest.fixture(scope="module")
def settings(minilm, shared_data) -> dict:
    files = shared_data / "classification" / "sst2"
    columns = ["sentence", "label"]
    return {
        "name": "minilm",
        "model": {"init": str(minilm)},
        "task": {"text": "sentence", "label": "label"},
        "data": {name: {"path": str(files / f"{name}.tsv"), "columns": columns} for name in ("train", "validation")},
    }


@pytest.mark.download
def test_packed_and_padded_logits_agree_on_every_validation_example(settings):
    outputs = {}
    for packing in (True, False):
        data = {**settings["data"], "packing": packing}
        config = Config.model_validate({**settings, "data": data}, strict=False)
        setup = make_setup(config, splits=("train", "validation"))
        params, _ = setup.init_params()
        # The head is new and its logits all but equal: weights of a trained one's size show a difference.
        params["head"]["out"] = jax.random.normal(jax.random.key(1), params["head"]["out"].shape) * 0.2
        evaluation = make_evaluator(setup).evaluate(*setup.split.split(params), setup.datasets["validation"])
        outputs[packing] = np.stack([answer.kept for answer in evaluation.answers])
    assert outputs[True].shape == (872, 2)
    assert np.ptp(outputs[True][:, 0]) > 0.3
    np.testing.assert_allclose(outputs[True], outputs[False], atol=1e-5, rtol=0)


@pytest.mark.download
@pytest.mark.parity
@pytest.mark.slow
def test_transformers_gives_the_labels_of_the_exported_model(settings, tmp_path):
    files = settings["data"]
    changed = {
        **settings,
        "data": {"train": {**files["train"], "limit": 320}, "validation": {**files["validation"], "limit": 256}},
        "optimizer": {"learning_rate": 3e-4},
        "train": {"batch_size": 32, "epochs": 1},
        "logging": {"directory": str(tmp_path), "tensorboard": False},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(changed))
    assert run("finetune", "--config", path) == 0
    rows = read_jsonl(tmp_path / "minilm" / "predictions" / "validation.jsonl")
    assert len(rows) == 256
    ours = [row["prediction"]["label"] for row in rows]
    scores = np.asarray([[row["prediction"]["scores"][label] for label in ("0", "1")] for row in rows])
    assert np.ptp(scores[:, 1]) > 0.05

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing torch and transformers warns about their own dependencies
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path / "minilm" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    theirs, probabilities = [], []
    for start in range(0, 256, 64):
        texts = [row["sentence"] for row in rows[start : start + 64]]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            logits = model(**batch).logits
        theirs.extend(model.config.id2label[int(i)] for i in logits.argmax(-1))
        probabilities.append(logits.softmax(-1).numpy())
    assert theirs == ours
    np.testing.assert_allclose(scores, np.concatenate(probabilities), atol=1e-4)
