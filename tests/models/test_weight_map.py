"""The two-way row engine, the tables of all families, and what they read of config.json."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from helpers.tiny_models import ENCODERS, tiny

from jaxlm.errors import UserError
from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import flatten
from jaxlm.models.weight_map import Rule, WeightMap, plan_import, rules_for

families = pytest.mark.parametrize("family", FAMILIES)
TABLE = WeightMap(
    rules=(
        Rule("trunk/w", "net.layer.{i}.w", "f d -> d f"),
        Rule("trunk/norm", "net.LayerNorm.weight"),
        Rule("head/out", "out.weight", "c d -> d c"),
    ),
    prefix="net.",
    ignore=(r"^cls\.",),
    aliases=((r"gamma$", "weight"),),
)
PARAMS = {"trunk/w": (2, 3, 5), "trunk/norm": (3,), "head/out": (3, 4)}
TENSORS = {"net.layer.0.w": (5, 3), "net.layer.1.w": (5, 3), "net.LayerNorm.weight": (3,), "out.weight": (4, 3)}


def test_rows_turn_tensors_into_parameters_and_back():
    row = Rule("q", "layer.{i}.q", "(n h) d -> d n h")
    tensor = np.arange(24.0).reshape(6, 4)
    value = row.to_param(tensor, (7, 4, 2, 3))  # 7 layers, width 4, 2 heads of 3
    assert value.shape == (4, 2, 3)
    for d, n, h in np.ndindex(4, 2, 3):
        assert value[d, n, h] == tensor[3 * n + h, d]
    np.testing.assert_array_equal(row.from_param(value), tensor)
    assert row.from_param(value).flags.c_contiguous
    assert row.hf_shape((7, 4, 2, 3)) == (6, 4)
    assert row.keys((3, 4, 2, 3)) == ["layer.0.q", "layer.1.q", "layer.2.q"]
    plain = Rule("norm", "norm.weight")
    assert plain.keys((4,)) == ["norm.weight"] and plain.hf_shape((4,)) == (4,)
    assert plain.to_param(tensor, (6, 4)) is tensor and plain.from_param(tensor) is tensor


def test_rows_may_count_from_elsewhere_and_read_what_they_were_tied_to():
    assert Rule("rest", "layer.{i}.w", layer_offset=2).keys((3, 4)) == ["layer.2.w", "layer.3.w", "layer.4.w"]
    table = WeightMap((Rule("table", "embed.w"), Rule("head/out", "out.w", fallback_key="embed.w")), "")
    shapes = {"table": (5, 4), "head/out": (5, 4)}
    for keys in (["embed.w", "out.w"], ["embed.w"]):
        plan = plan_import(table, shapes, dict.fromkeys(keys, (5, 4)))
        assert plan.reads["head/out"][1] == [keys[-1]] and plan.reads["table"][1] == ["embed.w"]
        assert not (plan.missing or plan.unread or plan.mismatched)
    assert [row.key for row in rules_for(table, shapes)] == ["embed.w", "out.w"]


def test_a_complete_checkpoint_is_read_whole():
    plan = plan_import(TABLE, PARAMS, {**TENSORS, "cls.bias": (9,)})
    assert {param: keys for param, (_, keys) in plan.reads.items()} == {
        "trunk/w": ["net.layer.0.w", "net.layer.1.w"],
        "trunk/norm": ["net.LayerNorm.weight"],
        "head/out": ["out.weight"],
    }
    assert (plan.missing, plan.ignored, plan.mismatched, plan.unread) == ([], ["cls.bias"], {}, [])


def test_old_spellings_and_a_bare_trunk_are_read_under_their_own_names():
    plan = plan_import(TABLE, PARAMS, {"layer.0.w": (5, 3), "layer.1.w": (5, 3), "LayerNorm.gamma": (3,)})
    assert plan.reads["trunk/norm"][1] == ["LayerNorm.gamma"]
    assert plan.reads["trunk/w"][1] == ["layer.0.w", "layer.1.w"]
    assert plan.missing == ["head/out"]


def test_a_trunk_without_its_prefix_is_read_beside_head_keys():
    tensors = {key.removeprefix("net."): shape for key, shape in TENSORS.items()}
    plan = plan_import(TABLE, PARAMS, {**tensors, "cls.bias": (9,), "layer.2.x": (1,)})
    assert plan.reads["trunk/w"][1] == ["layer.0.w", "layer.1.w"] and plan.reads["head/out"][1] == ["out.weight"]
    assert (plan.missing, plan.ignored, plan.unread) == ([], ["cls.bias"], ["layer.2.x"])
    with pytest.raises(UserError, match=r"'net\.layer\.0\.w' and 'layer\.0\.w' both mean"):
        plan_import(TABLE, PARAMS, {**TENSORS, "layer.0.w": (5, 3)})


def test_tied_tensors_are_read_under_either_name_and_to_be_compared_under_both():
    table = WeightMap((Rule("table", "net.embed"),), "net.", copies=(("out.w", "net.embed"),))
    for keys, read in ((["net.embed", "out.w"], "net.embed"), (["out.w"], "out.w"), (["embed"], "embed")):
        plan = plan_import(table, {"table": (5, 4)}, dict.fromkeys(keys, (5, 4)))
        assert plan.reads["table"][1] == [read] and not plan.unread
        assert plan.copies == ([("out.w", "net.embed")] if len(keys) == 2 else [])


def test_what_does_not_fit_is_reported():
    tensors = {**TENSORS, "net.layer.2.w": (5, 3), "net.LayerNorm.weight": (4,)}
    plan = plan_import(TABLE, PARAMS, tensors)
    assert plan.unread == ["net.layer.2.w"]  # more layers than config.json says
    assert plan.mismatched == {"trunk/norm": ("net.LayerNorm.weight", (4,), (3,))}
    del tensors["net.layer.1.w"]
    assert "trunk/w" in plan_import(TABLE, PARAMS, tensors).missing
    with pytest.raises(UserError, match=r"'net\.LayerNorm\.weight' and 'net\.LayerNorm\.gamma' both mean"):
        plan_import(TABLE, PARAMS, {**TENSORS, "net.LayerNorm.gamma": (3,)})


def test_local_parameters_have_no_rows_and_are_missing_from_every_checkpoint():
    table = dataclasses.replace(TABLE, not_exported=("^helper/",))
    params = {**PARAMS, "helper/w": (3, 4)}
    assert [row.param for row in rules_for(table, params)] == list(PARAMS)
    plan = plan_import(table, params, TENSORS)
    assert (plan.missing, plan.unread) == (["helper/w"], [])
    assert table.is_not_exported("helper/w") and not table.is_not_exported("trunk/helper/w")


def test_a_table_with_a_gap_or_a_double_is_a_mistake():
    with pytest.raises(ValueError, match="no rule for parameter trunk/new"):
        rules_for(TABLE, [*PARAMS, "trunk/new"])
    with pytest.raises(ValueError, match="parameter 'head/out' has two rules"):
        rules_for(WeightMap((*TABLE.rules, Rule("head/out", "other")), "net."), PARAMS)


@pytest.mark.parametrize(
    ("family", "head"), [(name, head) for name, record in FAMILIES.items() for head in record.heads]
)
def test_rules_cover_every_parameter_with_distinct_keys_and_other_heads_are_known(family, head):
    model = Model(FAMILIES[family], tiny(family).config, head, 3)
    table = model.weight_map
    shapes = {name: struct.shape for name, struct in flatten(model.shapes).items()}
    assert set(FAMILIES[family].heads[head].label_params) <= {*shapes, "head/out_bias"}
    shapes = {name: shape for name, shape in shapes.items() if not table.is_not_exported(name)}
    tensors = {}
    for row in rules_for(table, shapes):
        for key in row.keys(shapes[row.param]):
            assert key not in tensors, f"{key} is written twice"
            tensors[key] = row.hf_shape(shapes[row.param])
    plan = plan_import(table, shapes, tensors)
    assert plan.reads.keys() == shapes.keys()
    assert not (plan.missing or plan.ignored or plan.mismatched or plan.unread)
    assert any(key.startswith(table.prefix) for key in tensors)
    assert sum(np.prod(s) for s in tensors.values()) == sum(np.prod(s) for s in shapes.values())
    # A checkpoint with every head at once: what this model does not read, it knows.
    others = {rule.key: (1,) for record in FAMILIES[family].heads.values() for rule in record.rules}
    plan = plan_import(table, shapes, others | tensors)
    assert plan.reads.keys() == shapes.keys() and not plan.unread
    assert set(plan.ignored) == others.keys() - tensors.keys()


@families
def test_configs_survive_the_round_trip(family):
    record = FAMILIES[family]
    for config in [*record.presets.values(), tiny(family, pad_id=2, dropout=0.0).config]:
        assert record.from_hf(record.to_hf(config)) == config


def test_roberta_counts_positions_from_above_the_padding_id():
    published = {"vocab_size": 50265, "max_position_embeddings": 514, "pad_token_id": 1, "type_vocab_size": 1}
    config = FAMILIES["roberta"].from_hf(published)
    assert config.max_positions == 512
    assert tiny("roberta", pad_id=3, max_positions=24).shapes["trunk"]["positions"].shape == (28, 16)
    with pytest.raises(UserError, match="max_position_embeddings=2 leaves no position above pad_token_id=1"):
        FAMILIES["roberta"].from_hf({**published, "max_position_embeddings": 2})


def test_silent_and_null_keys_mean_what_transformers_takes_them_for():
    config = FAMILIES["bert"].from_hf({"vocab_size": 100, "pad_token_id": None, "hidden_dropout_prob": 0})
    assert (config.vocab_size, config.pad_id, config.norm_eps, config.num_layers) == (100, 0, 1e-12, 12)
    assert config.dropout == 0.0 and isinstance(config.dropout, float)
    assert config.classifier_dropout is None
    assert FAMILIES["roberta"].from_hf({"vocab_size": 100}).norm_eps == 1e-12
    with pytest.raises(UserError, match=re.escape("config.json: expected the key 'vocab_size', which is absent")):
        FAMILIES["xlm-roberta"].from_hf({})


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"is_decoder": True}, "is_decoder=true is not supported; expected an encoder"),
        ({"add_cross_attention": True}, "add_cross_attention=true is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not supported"),
        (
            {"hidden_act": "mish", "activation": "mish", "hidden_activation": "mish"},
            "'mish' is not supported; expected one of gelu, ",
        ),
    ],
)
def test_variants_that_would_compute_something_else_are_refused(family, settings, message):
    with pytest.raises(UserError, match=message):
        FAMILIES[family].from_hf({"vocab_size": 100, **settings})
