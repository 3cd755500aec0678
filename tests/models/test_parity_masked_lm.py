"""Masked-LM heads against Transformers: import, logits, export, strict load (marker `parity`)."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.hf_folders import assert_same_tensors, load_checkpoint
from helpers.tiny_models import Example, examples, pack, token_logits
from helpers.torch_reference import random_config, randomise, strict_load, torch_inputs

from jaxlm.hf.checkpoint import export_model
from jaxlm.models import FAMILIES, Model

pytestmark = pytest.mark.parity
ENCODERS = ("albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
encoders = pytest.mark.parametrize("family", ENCODERS)


def their_logits(model, texts: list[Example]) -> list[np.ndarray]:
    """Transformers' logits of each text, [length, V]."""
    import torch

    with torch.no_grad():
        logits = model(**torch_inputs(model, texts)).logits.numpy()
    return [row[: len(text.tokens)] for row, text in zip(logits, texts, strict=True)]


def our_logits(model: Model, params, texts: list[Example]) -> list[np.ndarray]:
    """Ours, the texts packed three to a row."""
    rows = [texts[i : i + 3] for i in range(0, len(texts), 3)]
    batch = pack(rows, length=27, slots=3, pad_id=model.config.pad_id)
    del batch["slot_positions"]
    logits = token_logits(model, params, batch)
    return [logits[r][batch["segment_ids"][r] == s + 1] for r, row in enumerate(rows) for s in range(len(row))]


@pytest.mark.parametrize("seed", range(7))
@encoders
def test_import_agrees_and_export_is_bit_equal(family, seed, tmp_path, transformers):
    config = random_config(family, seed)
    theirs = randomise(transformers.AutoModelForMaskedLM.from_config(config))
    theirs.save_pretrained(tmp_path / "in")
    model, imported = load_checkpoint(tmp_path / "in", "masked_lm")
    assert imported.initialized == imported.ignored == ()
    texts = examples(6, seed=seed)
    expected = their_logits(theirs, texts)
    for ours, reference in zip(our_logits(model, imported.params, texts), expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-4, rtol=0)
    assert np.ptp(np.concatenate(expected), axis=0).min() > 1e-2

    export_model(tmp_path / "out", model, imported.params)
    back = strict_load(tmp_path / "out", "AutoModelForMaskedLM")
    assert_same_tensors(tmp_path / "in", tmp_path / "out")
    for again, reference in zip(their_logits(back, texts), expected, strict=True):
        np.testing.assert_allclose(again, reference, atol=1e-5, rtol=0)
    beside = {"_name_or_path", "dtype", "sinusoidal_pos_embds", "id2label", "label2id", "problem_type"}
    described = config.to_dict().keys() - beside - {"architectures"}
    assert {k: back.config.to_dict()[k] for k in described} == {k: config.to_dict()[k] for k in described}
    assert back.config.architectures == [type(theirs).__name__]


@encoders
def test_heads_that_are_not_tied_agree_and_are_exported(family, tmp_path, transformers):
    config = random_config(family, 4)
    config.tie_word_embeddings = False
    theirs = randomise(transformers.AutoModelForMaskedLM.from_config(config))
    theirs.save_pretrained(tmp_path / "in")
    model, imported = load_checkpoint(tmp_path / "in", "masked_lm")
    texts = examples(6, seed=4)
    expected = their_logits(theirs, texts)
    for ours, reference in zip(our_logits(model, imported.params, texts), expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-4, rtol=0)
    export_model(tmp_path / "out", model, imported.params)
    back = strict_load(tmp_path / "out", "AutoModelForMaskedLM")
    assert back.config.tie_word_embeddings is False
    for again, reference in zip(their_logits(back, texts), expected, strict=True):
        np.testing.assert_allclose(again, reference, atol=1e-5, rtol=0)


def test_bert_for_pretraining_is_read_as_a_masked_lm(tmp_path, transformers):
    config = random_config("bert", 3)
    theirs = randomise(transformers.BertForPreTraining(config))
    theirs.save_pretrained(tmp_path / "in")
    model, imported = load_checkpoint(tmp_path / "in", "masked_lm")
    assert imported.initialized == ()
    assert imported.ignored == (
        "bert.pooler.dense.bias", "bert.pooler.dense.weight", "cls.seq_relationship.bias", "cls.seq_relationship.weight"
    )  # fmt: skip
    import torch

    texts = examples(3, seed=3)
    with torch.no_grad():
        expected = theirs(**torch_inputs(theirs, texts)).prediction_logits.numpy()
    for ours, reference in zip(our_logits(model, imported.params, texts), expected, strict=True):
        np.testing.assert_allclose(ours, reference[: len(ours)], atol=1e-4, rtol=0)


@encoders
def test_base_counts_are_those_of_transformers(family, transformers):
    import torch

    record = FAMILIES[family]
    preset = next(iter(record.presets.values()))
    config = transformers.AutoConfig.for_model(family, **record.to_hf(preset))
    with torch.device("meta"):
        theirs = transformers.AutoModelForMaskedLM.from_config(config)
    assert sum(p.numel() for p in theirs.parameters()) == Model(record, preset, "masked_lm", 0).num_parameters
