"""Agreement with Transformers: live (marker `parity`), and on committed logits where torch is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.hf_folders import assert_same_tensors, load_own_head
from helpers.paths import GOLDEN
from helpers.tiny_models import ENCODERS, Example, apply, examples, formula_tensor, pack, tiny
from helpers.torch_reference import random_config, randomise, strict_load, torch_inputs, torch_logits
from safetensors.numpy import load_file, save_file

from jaxlm.hf.checkpoint import HFCheckpoint, export_model, load_params
from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import flatten
from jaxlm.models.weight_map import rules_for

families = pytest.mark.parametrize("family", ENCODERS)


def packed_logits(model: Model, params, texts: list[Example]) -> np.ndarray:
    """Logits of each text, three texts to a row."""
    rows = [texts[i : i + 3] for i in range(0, len(texts), 3)]
    outputs = apply(model, params, pack(rows, length=27, slots=3, pad_id=model.config.pad_id))
    return np.concatenate([outputs[r, : len(row)] for r, row in enumerate(rows)])


def import_model(directory: Path, num_labels: int):
    checkpoint = HFCheckpoint(directory)
    model = Model(checkpoint.family, checkpoint.model_config, "classification", num_labels)
    return model, load_params(checkpoint, model, jax.random.key(0))


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if "classification" in family.heads])
def test_golden_logits(family, tmp_path):
    golden = json.loads((GOLDEN / f"{family}.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(golden["config"]), encoding="utf-8")
    record = FAMILIES[family]
    model = Model(record, record.from_hf(golden["config"]), "classification", 3)
    tensors = {}
    for row in rules_for(model.weight_map, flatten(model.shapes)):
        shape = flatten(model.shapes)[row.param].shape
        tensors |= {key: formula_tensor(key, row.hf_shape(shape)) for key in row.keys(shape)}
    save_file(tensors, tmp_path / "model.safetensors")

    model, imported = import_model(tmp_path, 3)
    assert imported.initialized == imported.ignored == ()
    texts = [Example(**example) for example in golden["examples"]]
    np.testing.assert_allclose(packed_logits(model, imported.params, texts), golden["logits"], atol=1e-4, rtol=0)


# From here on, Transformers runs beside us.


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(7))
@families
def test_import_agrees_and_export_is_bit_equal(family, seed, tmp_path, transformers):
    config = random_config(family, seed)
    theirs = randomise(transformers.AutoModelForSequenceClassification.from_config(config))
    theirs.save_pretrained(tmp_path / "in")
    model, imported = import_model(tmp_path / "in", config.num_labels)
    assert imported.initialized == imported.ignored == ()
    texts = examples(9, seed=seed)
    expected = torch_logits(theirs, texts)
    np.testing.assert_allclose(packed_logits(model, imported.params, texts), expected, atol=1e-4, rtol=0)
    assert np.ptp(expected, axis=0).min() > 1e-2

    kept = {key: getattr(config, key) for key in ("id2label", "label2id", "problem_type")}
    export_model(tmp_path / "out", model, imported.params, kept)
    back = strict_load(tmp_path / "out")
    assert_same_tensors(tmp_path / "in", tmp_path / "out")
    np.testing.assert_allclose(torch_logits(back, texts), expected, atol=1e-5, rtol=0)
    described = config.to_dict().keys() - {"_name_or_path", "dtype", "sinusoidal_pos_embds", "architectures"}
    assert {k: back.config.to_dict()[k] for k in described} == {k: config.to_dict()[k] for k in described}
    assert back.config.architectures == [type(theirs).__name__]


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", [*ENCODERS, "gpt2", "llama", "mistral", "qwen2", "qwen3"])
def test_token_classifiers_agree_and_export_is_bit_equal(family, seed, tmp_path, transformers):
    import torch

    config = random_config(family, seed) if family in ENCODERS else small_decoder(family)
    config.num_labels = 3
    theirs = randomise(transformers.AutoModelForTokenClassification.from_config(config))
    theirs.save_pretrained(tmp_path / "in")
    model, imported = load_own_head(tmp_path / "in", "token_classification", 3)
    texts = examples(6, seed=seed)
    batch = pack([texts[:3], texts[3:]], length=27, slots=3, pad_id=model.config.pad_id or 0)
    del batch["slot_positions"]
    ours = apply(model, imported.params, batch)
    with torch.no_grad():
        expected = theirs(**torch_inputs(theirs, texts)).logits.numpy()
    for i, text in enumerate(texts):
        row = ours[i // 3][batch["segment_ids"][i // 3] == i % 3 + 1]
        np.testing.assert_allclose(row, expected[i, : len(text.tokens)], atol=1e-4, rtol=0)
    export_model(
        tmp_path / "out", model, imported.params, {key: getattr(config, key) for key in ("id2label", "label2id")}
    )
    back = strict_load(tmp_path / "out", "AutoModelForTokenClassification")
    assert_same_tensors(tmp_path / "in", tmp_path / "out")
    assert back.config.architectures == [type(theirs).__name__]
    # Another kind of head does not take its labels over.
    _, classifier = import_model(tmp_path / "in", 3)
    assert {"head/out"} <= set(classifier.initialized)


@pytest.mark.parity
@pytest.mark.parametrize("family", ENCODERS)
def test_multiple_choice_heads_agree_and_export_is_bit_equal(family, tmp_path, transformers):
    """Each text as a candidate of a question of its own."""
    import torch

    theirs = randomise(transformers.AutoModelForMultipleChoice.from_config(random_config(family, 0)))
    theirs.save_pretrained(tmp_path / "in")
    model, imported = load_own_head(tmp_path / "in", "multiple_choice", 1)
    texts = examples(6, seed=0)
    batch = pack([texts[:3], texts[3:]], length=27, slots=3, pad_id=model.config.pad_id or 0)
    ours = apply(model, imported.params, batch).reshape(6)
    with torch.no_grad():
        inputs = {name: value[:, None] for name, value in torch_inputs(theirs, texts).items()}
        expected = theirs(**inputs).logits.numpy().reshape(6)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
    export_model(tmp_path / "out", model, imported.params)
    strict_load(tmp_path / "out", "AutoModelForMultipleChoice")
    assert_same_tensors(tmp_path / "in", tmp_path / "out")


def small_decoder(family: str) -> Any:
    from transformers import AutoConfig

    record = FAMILIES[family]
    return AutoConfig.for_model(family, **record.to_hf(tiny(family, pad_id=0).config))


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
    prefix = FAMILIES[family].trunk_map.prefix
    assert not any(key.startswith(prefix) for key in load_file(tmp_path / "in/model.safetensors"))
    imported = trunk_keeps_its_weights(tmp_path, theirs, 2)
    pooled = family in ("albert", "bert")  # whose pooler is part of the bare model
    beside = {"head/norm_scale"} if family == "modernbert" else {"head/dense_bias"}
    assert set(imported.initialized) == {"head/out", "head/out_bias"} | (set() if pooled else {"head/dense"} | beside)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *((family, "ForMaskedLM") for family in ("Bert", "DistilBert", "Electra", "Roberta", "XLMRoberta")),
        ("DebertaV2", "ForMaskedLM"),
        *(("MPNet", kind) for kind in ("ForMaskedLM", "ForQuestionAnswering", "ForTokenClassification")),
        *(("Albert", kind) for kind in ("ForMaskedLM", "ForPreTraining", "ForQuestionAnswering")),
        *((family, "ForPreTraining") for family in ("Bert", "Electra")),
        *((family, "ForTokenClassification") for family in ("Electra", "Roberta", "XLMRoberta")),
        *((family, "ForQuestionAnswering") for family in ("Bert", "DistilBert", "Electra", "Roberta", "XLMRoberta")),
    ],
)
def test_other_heads_are_ignored(family, kind, tmp_path, transformers):
    model_types = {"DebertaV2": "deberta-v2", "XLMRoberta": "xlm-roberta"}
    config = random_config(model_types.get(family, family.lower()), 3)
    config.num_labels = 2
    theirs = randomise(getattr(transformers, family + kind)(config))
    theirs.save_pretrained(tmp_path / "in")
    imported = trunk_keeps_its_weights(tmp_path, theirs, 2)
    assert imported.ignored
    assert {"head/out", "head/out_bias"} <= set(imported.initialized)


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
