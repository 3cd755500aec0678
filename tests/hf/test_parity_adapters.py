"""Adapters in PEFT's format: `peft` loads ours onto the base and computes what we do, and we read what it wrote."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.bases import write_base
from helpers.hf_folders import write_checkpoint
from helpers.tiny_models import apply, examples, pack

from jaxlm.config.model import ModelConfig
from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import HFCheckpoint, load_params
from jaxlm.hf.opening import open_model
from jaxlm.models import Model
from jaxlm.models.base import flatten
from jaxlm.models.places import unflatten
from jaxlm.nn.layers import ComputeConfig
from jaxlm.setup.few_parameters import adapter_files, make_adapters, make_split

GPT2 = {
    "model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "architectures": ["GPT2LMHeadModel"],
}  # fmt: skip
TEXTS = examples(3)
OURS = {
    "bert-lora": ("bert", {"lora": {"rank": 2, "targets": ["q", "down"], "dora": True}}),
    "bert-ia3": ("bert", {"ia3": {}}),
    "gpt2-lora": ("gpt2", {"lora": {"rank": 3, "targets": ["all"], "rslora": True}}),
}
THEIRS = {
    "bert-lora": ("bert", {"r": 3, "target_modules": ["query", "attention.output.dense"], "rank_pattern": {"query": 2},
                           "alpha_pattern": {"query": 5}, "use_dora": True, "lora_alpha": 7}),
    "gpt2-lora": ("gpt2", {"r": 3, "target_modules": ["c_attn"], "use_rslora": True, "fan_in_fan_out": True}),
    "bert-ia3": ("bert", {"target_modules": ["key", "value", "intermediate.dense"],
                          "feedforward_modules": ["intermediate.dense"]}),
}  # fmt: skip


def base_of(family: str, directory: Path) -> Path:
    if family == "bert":
        return write_base(directory)
    write_checkpoint(directory, GPT2, "causal_lm")
    return directory


def classifier(checkpoint: HFCheckpoint, **compute: Any) -> Model:
    return Model(checkpoint.family, checkpoint.model_config, "classification", 3, ComputeConfig(**compute))


def ours(model: Model, params: Any) -> np.ndarray:
    batch = pack([[text] for text in TEXTS], 16, 1)
    return apply(model, params, batch)[:, 0]


def theirs(network: Any) -> np.ndarray:
    import torch

    network.eval()
    batch = pack([[text] for text in TEXTS], 16, 1)
    arrays = {"input_ids": batch["tokens"], "attention_mask": batch["segment_ids"]}
    if network.config.model_type == "bert":
        arrays["token_type_ids"] = batch["token_types"]
    with torch.no_grad():
        return network(**{name: torch.tensor(value).long() for name, value in arrays.items()}).logits.numpy()


def classes(base: Path) -> Any:
    """The base with a head of Transformers' own."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", OURS)
def test_peft_computes_what_our_adapters_do(case, tmp_path, transformers):
    peft = pytest.importorskip("peft")
    family, settings = OURS[case]
    base = base_of(family, tmp_path / "base")
    config = ModelConfig.model_validate({"init": str(base), **settings})
    checkpoint = HFCheckpoint(base)
    model = classifier(checkpoint, adapter_scale=1.0 if config.lora is None else config.lora.scale)
    adapters = make_adapters(config, model)
    split = make_split(config, model, adapters, checkpoint)
    params = load_params(checkpoint, model, jax.random.key(0)).params
    rng, flat = np.random.default_rng(0), flatten(params)
    for path, leaf in adapters.leaves.items():
        flat[path] = rng.normal(1.0 if leaf.suffix.endswith("scale") else 0.0, 0.3, leaf.shape).astype(np.float32)
    adapter_files(config, adapters, split, checkpoint).write(tmp_path / "adapter", unflatten(flat))
    expected = ours(model, unflatten(flat))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = peft.PeftModel.from_pretrained(classes(base), tmp_path / "adapter")
    np.testing.assert_allclose(theirs(network), expected, atol=1e-4, rtol=1e-4)
    # And we read it back, as one model.
    merged = open_model(str(tmp_path / "adapter"), key="model.init")
    assert merged.directory == base and merged.head == "classification"
    own = classifier(merged)
    loaded = load_params(merged, own, jax.random.key(1))
    assert loaded.initialized == ()
    np.testing.assert_allclose(ours(own, loaded.params), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", THEIRS)
def test_adapters_of_peft_are_read(case, tmp_path, transformers):
    peft = pytest.importorskip("peft")
    import torch

    family, settings = THEIRS[case]
    base = base_of(family, tmp_path / "base")
    kind = peft.LoraConfig if "lora" in case else peft.IA3Config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = peft.get_peft_model(classes(base), kind(task_type="SEQ_CLS", **settings))
        for name, parameter in network.named_parameters():
            if "lora_" in name or "ia3_" in name:
                torch.nn.init.normal_(parameter, 1.0 if "ia3" in name or "magnitude" in name else 0.0, 0.3)
        network.save_pretrained(tmp_path / "adapter")
    checkpoint = open_model(str(tmp_path / "adapter"), key="model.init", base=str(base))
    model = classifier(checkpoint)
    loaded = load_params(checkpoint, model, jax.random.key(0))
    if family == "bert":  # PEFT saves no pooler, and the base has none: Transformers drew it
        assert loaded.initialized == ("head/dense", "head/dense_bias")
        pooler = network.base_model.model.bert.pooler.dense
        loaded.params["head"]["dense"] = pooler.weight.detach().numpy().T
        loaded.params["head"]["dense_bias"] = pooler.bias.detach().numpy()
    else:
        assert loaded.initialized == ()
    np.testing.assert_allclose(ours(model, loaded.params), theirs(network), atol=1e-4, rtol=1e-4)


def test_adapters_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}')
    with pytest.raises(UserError, match="peft_type 'PREFIX_TUNING' is not read; expected LORA or IA3"):
        open_model(str(tmp_path), key="model.init")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match=r"names no base_model_name_or_path; name it in model\.base"):
        open_model(str(tmp_path), key="model.init")
