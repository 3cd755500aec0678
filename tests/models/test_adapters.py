"""Adapters beside kernels: what they compute, where they stand, how they begin, and how they are merged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.tiny_models import apply, examples, pack, tiny, token_logits, weights

from jaxlm.errors import UserError
from jaxlm.models.adapters import DORA, IA3, IA3_INPUT, LORA, Adapters, find_targets
from jaxlm.models.base import flatten
from jaxlm.models.places import unflatten
from jaxlm.nn.dropout import dropout
from jaxlm.nn.layers import ComputeConfig, dense, normal

SCALE = 2.0
COMPUTE = ComputeConfig(adapter_scale=SCALE)
BATCH = pack([examples(2), examples(3, seed=1)], 24, 3)


def drawn(adapters: Adapters, seed: int = 1):
    """Adapters far from their beginning, which changes nothing."""
    rng = np.random.default_rng(seed)
    return {
        path: rng.normal(1.0 if leaf.suffix.endswith("scale") else 0.0, 0.3, leaf.shape).astype(np.float32)
        for path, leaf in adapters.leaves.items()
    }


def merged_by_hand(kernel, adapter, num_inputs):
    """The weights of one layer as a matrix, from the papers' formulas, in float64."""
    shape = kernel.shape
    matrix = kernel.reshape(int(np.prod(shape[:num_inputs])), -1).astype(np.float64)
    if "lora_a" in adapter:
        rank = adapter["lora_a"].shape[-1]
        matrix = matrix + SCALE * adapter["lora_a"].reshape(-1, rank).astype(np.float64) @ adapter["lora_b"].reshape(
            rank, -1
        )
    if DORA in adapter:
        matrix = matrix / np.linalg.norm(matrix, axis=0) * adapter[DORA].ravel()
    if IA3 in adapter:
        matrix = matrix * adapter[IA3].ravel()
    if IA3_INPUT in adapter:
        matrix = matrix * adapter[IA3_INPUT].ravel()[:, None]
    return matrix.reshape(shape)


CASES = {
    "bert": (("all",), (*LORA, DORA), {"unroll": 1}),
    "gpt2": (("qkv", "o", "down"), LORA, {}),
    "albert": (("q", "project", "down"), (*LORA, DORA), {}),
    "deberta-v2": (("attention",), LORA, {}),
    "t5": (("decoder/q", "cross_v", "down"), LORA, {}),
    "llama": (("k", "v", "down"), (IA3,), {}),
}


@pytest.mark.parametrize("family", CASES)
def test_a_model_with_adapters_computes_what_the_merged_model_does(family):
    names, suffixes, knobs = CASES[family]
    plain = tiny(family)
    model = tiny(family, ComputeConfig(adapter_scale=SCALE, **knobs))
    targets = dict.fromkeys(find_targets(model, names, "model.lora.targets"), suffixes)
    if IA3 in suffixes:
        targets = {path: (IA3_INPUT,) if path.endswith("down") else suffixes for path in targets}
    adapters = Adapters(model, targets, rank=2)
    params, beside = weights(model), drawn(adapters)
    flat = flatten(params)
    whole = unflatten({**flat, **beside})
    merged = flatten(adapters.fold(whole))
    assert merged.keys() == flat.keys()
    for kernel in targets:
        adapter = {suffix: beside[f"{kernel}_{suffix}"] for suffix in targets[kernel]}
        stacked = flatten(model.axes)[kernel][0] == "layers"
        for i in range(len(flat[kernel]) if stacked else 1):
            at = i if stacked else ...
            one = {suffix: value[at] for suffix, value in adapter.items()}
            expected = merged_by_hand(flat[kernel][at], one, model.kernels[kernel])
            np.testing.assert_allclose(merged[kernel][at], expected, rtol=1e-4, atol=1e-5, err_msg=kernel)
    logits = token_logits if family == "t5" else apply
    batch = BATCH | {f"decoder_{name}": BATCH[name] for name in ("tokens", "segment_ids", "positions")}
    found = logits(model, whole, batch)
    np.testing.assert_allclose(found, logits(plain, unflatten(merged), batch), rtol=2e-4, atol=2e-4)
    assert np.abs(found - logits(plain, params, batch)).max() > 1e-2


def test_adapters_begin_without_effect_and_do_not_depend_on_one_another():
    model = tiny("bert", COMPUTE)
    params, key = weights(model), jax.random.key(3)
    both = Adapters(model, dict.fromkeys(find_targets(model, ("q", "o"), ""), (*LORA, DORA)), rank=2)
    begun = flatten(both.init(key, params))
    for name, value in flatten(both.fold(unflatten({**flatten(params), **begun}))).items():
        np.testing.assert_allclose(value, flatten(params)[name], rtol=1e-5, atol=1e-6)
    alone = Adapters(model, dict.fromkeys(find_targets(model, ("o",), ""), LORA), rank=2)
    path = "trunk/stack/layers/o_lora_a"
    drawn_alone = flatten(alone.init(key, params))[path]
    np.testing.assert_array_equal(drawn_alone, begun[path])
    assert drawn_alone.shape == (3, 4, 4, 2) and 0.2 < np.abs(drawn_alone).max() <= 0.25  # 16 inputs


class _Map(nn.Module):
    """Two dense maps."""

    compute: ComputeConfig

    @nn.compact
    def __call__(self, x):
        return [dense(self, name, x, (6, 5), ("embed", "mlp"), init=normal(1.0)) for name in ("one", "two")]


def test_the_low_rank_update_alone_sees_dropped_inputs():
    rng = np.random.default_rng(0)
    x, a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 6), (6, 2), (2, 5)))
    module = _Map(ComputeConfig(adapter_scale=SCALE, adapter_dropout=0.5))
    params = nn.meta.unbox(module.init(jax.random.key(0), x)["params"])
    plain = module.apply({"params": params}, x)
    key = jax.random.key(7)
    adapted = {**params, "one_lora_a": a, "one_lora_b": b}
    still, _ = module.apply({"params": adapted}, x)
    np.testing.assert_allclose(still, plain[0] + SCALE * x @ a @ b, rtol=1e-4, atol=1e-5)
    one, two = module.apply({"params": {**adapted, "one_lora_key": key}}, x)
    dropped = np.asarray(dropout(x, 0.5, key))
    assert 0 < (dropped == 0).sum() < dropped.size
    np.testing.assert_allclose(one, plain[0] + SCALE * dropped @ a @ b, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(two, plain[1])


def test_every_layer_and_kernel_drops_inputs_of_its_own():
    model = tiny("bert", COMPUTE)
    adapters = Adapters(model, dict.fromkeys(find_targets(model, ("q", "k"), ""), LORA), rank=2)
    layers = adapters.with_keys(weights(model), jax.random.key(0))["trunk"]["stack"]["layers"]
    keys = np.concatenate([jax.random.key_data(layers[f"{name}_lora_key"]) for name in "qk"])
    assert len(np.unique(keys, axis=0)) == 6


@pytest.mark.parametrize(
    "family, names, words",
    [
        ("bert", ["query"], "bert has no kernel 'query'; did you mean 'q'? Expected some of down, k, o, q, "),
        ("gpt2", ["q", "v"], "gpt2 has no kernel 'q'"),
        ("bert", ["out"], "has no kernel 'out'; expected some of "),  # the head's, which is trained itself
        ("t5", ["encoder/cross_q"], "has no kernel 'encoder/cross_q'"),
        ("gru", ["q"], "the gru family has no kernels that an adapter may stand beside"),
    ],
)
def test_targets_that_a_family_lacks_are_refused(family, names, words):
    with pytest.raises(UserError, match="model.lora.targets: ") as error:
        find_targets(tiny(family), names, "model.lora.targets")
    assert words in str(error.value)


def test_groups_of_targets_go_by_logical_axes():
    model = tiny("llama")
    last = lambda names: {path.split("/")[-1] for path in find_targets(model, names, "")}  # noqa: E731
    assert last(["attention"]) == {"q", "k", "v", "o"}
    assert last(["mlp"]) == {"gate", "up", "down"}
    assert last(["all"]) == last(["attention", "mlp"])
