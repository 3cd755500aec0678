"""Mixup before the head: partners, shares and losses against plain loops, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.knob_runs import DRY, plan_of, train, write
from helpers.tiny_models import assert_close, examples, inputs, pack, tiny, weights

from jaxlm.errors import UserError
from jaxlm.fields import MIX_PARTNER, MIX_SHARE
from jaxlm.objectives import without_frozen
from jaxlm.objectives.classification import LOSSES
from jaxlm.objectives.mixup import mixup, partners

HELD = jnp.asarray([[1.0, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])


def test_each_example_has_another_and_is_the_partner_of_one():
    seen = set()
    for seed in range(40):
        found = np.asarray(partners(HELD, jax.random.key(seed))).reshape(-1)
        held = np.flatnonzero(np.asarray(HELD).reshape(-1))
        assert sorted(found[held]) == held.tolist() and (found[held] != held).all()
        empty = np.setdiff1d(np.arange(9), held)
        assert found[empty].tolist() == empty.tolist()
        seen |= {(int(i), int(found[i])) for i in held}
    assert len(seen) == 6 * 5
    alone = jnp.asarray([[0.0, 1.0]])
    assert partners(alone, jax.random.key(0)).tolist() == [[0, 1]]


@pytest.mark.parametrize("problem", ["multiclass", "binary", "multilabel", "regression"])
def test_outputs_and_loss_are_those_of_mixed_examples(problem):
    rng = np.random.default_rng(0)
    states, table = rng.normal(size=(3, 3, 5)), rng.normal(size=(5, 2))
    shape = (3, 3, 2) if problem == "multilabel" else (3, 3)
    labels = rng.normal(size=shape) if problem == "regression" else rng.integers(0, 2, shape)
    batch = {"weights": HELD, "labels": jnp.asarray(labels, jnp.float32 if problem == "regression" else jnp.int32)}

    def apply(params, frozen, batch, key):
        partner, share = np.asarray(batch[MIX_PARTNER]), np.asarray(batch[MIX_SHARE])[..., None]
        mixed = share * states + (1 - share) * states.reshape(9, 5)[partner.reshape(-1)].reshape(3, 3, 5)
        return jnp.asarray(mixed @ table, jnp.float32)

    plain = LOSSES[problem](0.0)
    run, loss = mixup(apply, plain, 0.4)
    made = run(None, {}, batch, jax.random.key(3))
    total, weight = loss(made, batch)
    outputs, partner, share = map(np.asarray, made)
    assert (share[np.asarray(HELD) > 0] < 0.1).any() and ((share >= 0) & (share <= 1)).all()
    expected = 0.0
    for row, slot in zip(*np.nonzero(np.asarray(HELD)), strict=True):
        other = np.unravel_index(partner[row, slot], (3, 3))
        for part, place in ((share[row, slot], (row, slot)), (1 - share[row, slot], other)):
            one = {"labels": batch["labels"][place][None], "weights": jnp.ones(1)}
            expected += HELD[row, slot] * part * plain(jnp.asarray(outputs[row, slot])[None], one)[0]
    assert_close(total, expected)
    assert_close(weight, HELD.sum())


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_model_mixes_states_and_nothing_else(family):
    model = tiny(family)
    params = jax.tree.map(jnp.asarray, weights(model))
    packed = inputs(pack([examples(6)[:3], examples(6)[3:]], 32, 4), model)
    batch = {name: jnp.asarray(value, jnp.int32) for name, value in packed.items()}
    held = batch["slot_positions"].shape
    partner = jnp.arange(held[0] * held[1], dtype=jnp.int32)[::-1].reshape(held)
    plain = model.apply(params, batch)
    own, other = (
        model.apply(params, {**batch, MIX_PARTNER: partner, MIX_SHARE: jnp.full(held, share)}) for share in (1.0, 0.0)
    )
    assert_close(own, plain)
    assert_close(other.reshape(-1, 3), plain.reshape(-1, 3)[::-1])
    run, _ = mixup(without_frozen(model.apply), LOSSES["multiclass"](0.0), 1.0)
    outputs, _, _ = run(params, {}, {**batch, "weights": jnp.ones(held)}, jax.random.key(0))
    assert float(abs(outputs - plain).max()) > 1e-3


def test_what_it_refuses(tmp_path):
    config = write(tmp_path)
    with pytest.raises(UserError, match="expected r_drop or mixup, not both"):
        plan_of(config, "train.mixup=0.4", "train.r_drop=1")
    with pytest.raises(UserError, match=r"train\.mixup: the head of modernbert pools and answers at once"):
        plan_of(config, "train.mixup=0.4", "model.family=modernbert")


@pytest.mark.slow
def test_a_mesh_mixes_as_one_device(tmp_path):
    config = write(tmp_path, train={"mixup": 0.4})
    one = train(plan_of(config, *DRY), 2)[1]
    found = train(plan_of(config, *DRY, "mesh.preset=fsdp", devices=jax.devices()), 2)[1]
    assert found.keys() == one.keys()
    changed = train(plan_of(config, *DRY, "train.mixup=null"), 2)[1]
    assert any(not np.allclose(one[name], changed[name], atol=1e-4) for name in one)
