"""Heads for question answering against Transformers, both ways; and their predictions on its exports."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.hf_folders import assert_same_tensors, load_checkpoint, load_own_head
from helpers.tiny_models import ENCODERS, apply, examples, pack
from helpers.torch_reference import random_config, randomise, strict_load, torch_inputs

from jaxlm.hf.checkpoint import export_model


@pytest.mark.parity
@pytest.mark.parametrize("family", ENCODERS)
def test_logits_agree_and_export_is_bit_equal(family, tmp_path, transformers):
    import torch

    config = random_config(family, 0)
    config.num_labels = 2
    theirs = randomise(transformers.AutoModelForQuestionAnswering.from_config(config))
    theirs.save_pretrained(tmp_path / "in")
    model, imported = load_own_head(tmp_path / "in", "question_answering", 2)
    texts = examples(6, seed=0)
    batch = pack([texts[:3], texts[3:]], length=27, slots=3, pad_id=model.config.pad_id or 0)
    del batch["slot_positions"]
    ours = apply(model, imported.params, batch)
    with torch.no_grad():
        outputs = theirs(**torch_inputs(theirs, texts))
    expected = np.stack([outputs.start_logits.numpy(), outputs.end_logits.numpy()], axis=-1)
    for i, text in enumerate(texts):
        row = ours[i // 3][batch["segment_ids"][i // 3] == i % 3 + 1]
        np.testing.assert_allclose(row, expected[i, : len(text.tokens)], atol=1e-4, rtol=0)
    assert np.ptp(expected) > 1e-2

    export_model(tmp_path / "out", model, imported.params, {})
    back = strict_load(tmp_path / "out", "AutoModelForQuestionAnswering")
    assert_same_tensors(tmp_path / "in", tmp_path / "out")
    assert back.config.architectures == [type(theirs).__name__] and back.config.num_labels == 2
    # Another kind of head begins anew, and leaves this one out.
    _, other = load_checkpoint(tmp_path / "in", "classification", 3)
    assert {"head/out"} <= set(other.initialized)
    assert "qa_outputs.weight" in other.ignored or family == "modernbert"  # which calls the map `classifier` in all
