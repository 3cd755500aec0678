"""Agreement with Transformers: live (marker `parity`), and on committed logits where torch is not installed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import Example, apply, examples, formula_tensor, pack

from jaxlm.hf.io import Checkpoint, export_model, load_params
from jaxlm.hf.table import rows_for
from jaxlm.layers import ACTIVATIONS
from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import flatten

GOLDEN = Path(__file__).parent / "golden"
families = pytest.mark.parametrize("family", FAMILIES)


def packed_logits(model: Model, params, texts: list[Example]) -> np.ndarray:
    """Logits of each text, three texts to a row."""
    rows = [texts[i : i + 3] for i in range(0, len(texts), 3)]
    outputs = apply(model, params, pack(rows, length=27, slots=3, pad_id=model.config.pad_id))
    return np.concatenate([outputs[r, : len(row)] for r, row in enumerate(rows)])


def import_model(directory: Path, num_labels: int):
    checkpoint = Checkpoint(directory)
    model = Model(checkpoint.family, checkpoint.model_config, "classification", num_labels)
    return model, load_params(checkpoint, model, jax.random.key(0))


@families
def test_golden_logits(family, tmp_path):
    golden = json.loads((GOLDEN / f"{family}.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(golden["config"]), encoding="utf-8")
    record = FAMILIES[family]
    model = Model(record, record.from_hf(golden["config"]), "classification", 3)
    tensors = {}
    for row in rows_for(record.table, flatten(model.shapes)):
        shape = flatten(model.shapes)[row.param].shape
        tensors |= {key: formula_tensor(key, row.hf_shape(shape)) for key in row.keys(shape)}
    save_file(tensors, tmp_path / "model.safetensors")

    model, imported = import_model(tmp_path, 3)
    assert imported.initialised == imported.ignored == ()
    texts = [Example(**example) for example in golden["examples"]]
    np.testing.assert_allclose(packed_logits(model, imported.params, texts), golden["logits"], atol=1e-4, rtol=0)


# From here on, Transformers runs beside us.


def random_config(family: str, seed: int) -> Any:
    """A random small Transformers config of a family, for classification."""
    from transformers import AutoConfig

    rng = np.random.default_rng(seed)
    pick = lambda *options: options[int(rng.integers(len(options)))]  # noqa: E731
    heads = pick(1, 2, 4)
    width = heads * pick(4, 6, 10)
    act = sorted(ACTIVATIONS)[seed % len(ACTIVATIONS)]
    layers, mlp, eps = pick(1, 2, 3, 5), pick(8, 20, 33), pick(1e-12, 1e-5, 1e-2)
    labels = pick(1, 2, 5)
    problem = "regression" if labels == 1 else pick("single_label_classification", "multi_label_classification")
    common = {
        "vocab_size": pick(64, 71, 90),
        "max_position_embeddings": pick(16, 25, 40),
        "initializer_range": pick(0.02, 0.5),
        "num_labels": labels,
        "problem_type": problem,
        "pad_token_id": pick(0, 1, 3),
    }
    if family == "distilbert":
        return AutoConfig.for_model(
            family, **common, n_layers=layers, n_heads=heads, dim=width, hidden_dim=mlp, activation=act,
            seq_classif_dropout=pick(0, 0.2), sinusoidal_pos_embds=bool(seed % 2),
        )  # fmt: skip
    own = {"embedding_size": pick(width, 8, 30)} if family == "electra" else {}
    return AutoConfig.for_model(
        family, **common, **own, num_hidden_layers=layers, num_attention_heads=heads, hidden_size=width,
        intermediate_size=mlp, hidden_act=act, layer_norm_eps=eps, type_vocab_size=pick(1, 2, 3),
        classifier_dropout=pick(None, 0, 0.3), hidden_dropout_prob=pick(0, 0.1),
    )  # fmt: skip


def randomise(model):
    """Replaces every weight: Transformers starts biases at zero and norm scales at one."""
    import torch

    model.load_state_dict({k: torch.from_numpy(formula_tensor(k, v.shape)) for k, v in model.state_dict().items()})
    return model.eval()


def torch_logits(model, texts: list[Example]) -> np.ndarray:
    """Transformers' logits of a padded batch."""
    import torch

    length = max(len(text.tokens) for text in texts)
    padded = lambda rows, fill: torch.tensor([row + [fill] * (length - len(row)) for row in rows])  # noqa: E731
    arrays = {
        "input_ids": padded([text.tokens for text in texts], model.config.pad_token_id),
        "attention_mask": padded([[1] * len(text.tokens) for text in texts], 0),
    }
    if getattr(model.config, "type_vocab_size", 0) > 1:
        arrays["token_type_ids"] = padded([text.token_types for text in texts], 0)
    with torch.no_grad():
        return model(**arrays).logits.numpy()


def strict_load(directory: Path):
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing torch and transformers warns about their own dependencies
        import transformers
    return transformers


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(7))
@families
def test_import_agrees_and_export_is_bit_equal(family, seed, tmp_path, transformers):
    config = random_config(family, seed)
    theirs = randomise(transformers.AutoModelForSequenceClassification.from_config(config))
    theirs.save_pretrained(tmp_path / "in")
    model, imported = import_model(tmp_path / "in", config.num_labels)
    assert imported.initialised == imported.ignored == ()
    texts = examples(9, seed=seed)
    expected = torch_logits(theirs, texts)
    np.testing.assert_allclose(packed_logits(model, imported.params, texts), expected, atol=1e-4, rtol=0)
    assert np.ptp(expected, axis=0).min() > 1e-2

    kept = {key: getattr(config, key) for key in ("id2label", "label2id", "problem_type")}
    export_model(tmp_path / "out", model, imported.params, kept)
    back = strict_load(tmp_path / "out")
    before, after = load_file(tmp_path / "in/model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value, err_msg=key, strict=True)
    np.testing.assert_allclose(torch_logits(back, texts), expected, atol=1e-5, rtol=0)
    described = config.to_dict().keys() - {"_name_or_path", "dtype", "sinusoidal_pos_embds", "architectures"}
    assert {k: back.config.to_dict()[k] for k in described} == {k: config.to_dict()[k] for k in described}
    assert back.config.architectures == [type(theirs).__name__]


def trunk_keeps_its_weights(tmp_path: Path, theirs, num_labels: int):
    """Imports tmp_path / "in" under a new head, exports, and compares what Transformers then finds in the trunk."""
    model, imported = import_model(tmp_path / "in", num_labels)
    export_model(tmp_path / "out", model, imported.params)
    base = strict_load(tmp_path / "out").base_model.state_dict()
    for key, value in theirs.base_model.state_dict().items():
        if not key.startswith("pooler.") or key in base:
            np.testing.assert_array_equal(base[key].numpy(), value.numpy(), err_msg=key)
    return imported


@pytest.mark.parity
@families
def test_bare_trunk_without_prefix(family, tmp_path, transformers):
    theirs = randomise(transformers.AutoModel.from_config(random_config(family, 2)))
    theirs.save_pretrained(tmp_path / "in")
    prefix = FAMILIES[family].table.prefix
    assert not any(key.startswith(prefix) for key in load_file(tmp_path / "in/model.safetensors"))
    imported = trunk_keeps_its_weights(tmp_path, theirs, 2)
    pooled = family == "bert"  # BERT's pooler is part of its bare model
    assert set(imported.initialised) == {"head/out", "head/out_bias"} | (
        set() if pooled else {"head/dense", "head/dense_bias"}
    )


@pytest.mark.parity
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *((family, "ForMaskedLM") for family in ("Bert", "DistilBert", "Electra", "Roberta", "XLMRoberta")),
        *((family, "ForPreTraining") for family in ("Bert", "Electra")),
        *((family, "ForTokenClassification") for family in ("Electra", "Roberta", "XLMRoberta")),
        *((family, "ForQuestionAnswering") for family in ("Bert", "DistilBert", "Electra", "Roberta", "XLMRoberta")),
    ],
)
def test_other_heads_are_ignored(family, kind, tmp_path, transformers):
    config = random_config("xlm-roberta" if family == "XLMRoberta" else family.lower(), 3)
    config.num_labels = 2
    theirs = randomise(getattr(transformers, family + kind)(config))
    theirs.save_pretrained(tmp_path / "in")
    imported = trunk_keeps_its_weights(tmp_path, theirs, 2)
    assert imported.ignored
    assert {"head/out", "head/out_bias"} <= set(imported.initialised)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["bert", "electra", "roberta"])
def test_old_norm_names(family, tmp_path, transformers):
    config = random_config(family, 4)
    theirs = randomise(transformers.AutoModelForSequenceClassification.from_config(config))
    theirs.save_pretrained(tmp_path / "in")
    path = tmp_path / "in/model.safetensors"
    renamed = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in load_file(path).items()
    }
    assert any(key.endswith("gamma") for key in renamed)
    save_file(renamed, path, metadata={"format": "pt"})
    model, imported = import_model(tmp_path / "in", config.num_labels)
    texts = examples(6, seed=4)
    logits = packed_logits(model, imported.params, texts)
    np.testing.assert_allclose(logits, torch_logits(theirs, texts), atol=1e-4, rtol=0)


@pytest.mark.parity
@families
def test_published_counts_are_those_of_transformers(family, transformers):
    import torch

    record = FAMILIES[family]
    for preset, config in record.presets.items():
        theirs = transformers.AutoConfig.for_model(family, **record.to_hf(config), num_labels=2)
        with torch.device("meta"):
            model = transformers.AutoModelForSequenceClassification.from_config(theirs)
        assert sum(p.numel() for p in model.parameters()) == record.published[preset], preset
