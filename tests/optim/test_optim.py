"""Update rules against references that take one matrix of one layer at a time; which matrices there are."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import optax
import pytest
from helpers.finetuning_runs import run, write_config
from helpers.tiny_models import tiny
from helpers.update_rules import AXES, CHOICES, DECAY, FACTORED_FROM, RATE, SHAPES, draw, optimizer_of

from jaxlm.errors import UserError
from jaxlm.models import FAMILIES
from jaxlm.models.base import flatten
from jaxlm.optim import decay_mask, make_schedule
from jaxlm.optim.config import OptimizerConfig
from jaxlm.optim.matrices import MatrixDims, matrix_dims

TABLES, PLAIN = {"tokens"}, {"q_bias", "norm_scale"}
MOMENTUM = 0.8
"""Not the default, so that a key which is not read would show."""


def gradients(num: int) -> list[dict[str, np.ndarray]]:
    """Of sizes that differ from layer to layer, so that a mean over layers would show."""
    made = [draw(SHAPES, seed) for seed in range(num)]
    return [{name: g * (1 + 9 * np.arange(len(g)).reshape(-1, *[1] * (g.ndim - 1))).astype(np.float32)
             for name, g in one.items()} for one in made]  # fmt: skip


def trained(axes: Any, num: int = 4, **keys: Any) -> dict[str, np.ndarray]:
    optimizer, params = optimizer_of(axes, **keys), draw(SHAPES, 100)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for grads in gradients(num):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get(params)


def parts(name: str, value: np.ndarray) -> list[np.ndarray]:
    """Views of one parameter's matrices and vectors, layer by layer, with heads joined."""
    if name == "fused":
        return [value[layer, :, kind].reshape(8, 12) for layer in range(2) for kind in range(3)]
    if name in ("q", "o"):
        return [layer.reshape((8, 12) if name == "q" else (12, 8)) for layer in value]
    return list(value.reshape(2, -1)) if name == "q_bias" else [value]


def by_hand(rule: Any, num: int = 4) -> dict[str, list[np.ndarray]]:
    """Parameters after `num` steps of `rule(name, part, gradients so far) -> direction`, one part at a time."""
    params = {
        name: [part.astype(np.float64) for part in parts(name, value)] for name, value in draw(SHAPES, 100).items()
    }
    history = gradients(num)
    for step in range(1, num + 1):
        for name, values in params.items():
            for i, value in enumerate(values):
                seen = [parts(name, grads[name])[i].astype(np.float64) for grads in history[:step]]
                decay = 0 if name.endswith(("_bias", "_scale")) else DECAY
                values[i] = value - RATE * (rule(name, value, seen) + decay * value)
    return params


def expect(found: dict[str, np.ndarray], wanted: dict[str, list[np.ndarray]], tolerance: float = 1e-5) -> None:
    start = draw(SHAPES, 100)
    for name, values in wanted.items():
        for before, part, value in zip(parts(name, start[name]), parts(name, found[name]), values, strict=True):
            moved = np.abs(value - before).max()
            np.testing.assert_allclose(part, value, rtol=0, atol=tolerance * max(moved, 0.01), err_msg=name)


def adam(name: str, value: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    t = len(seen)
    mu = sum(0.1 * 0.9 ** (t - 1 - i) * g for i, g in enumerate(seen)) / (1 - 0.9**t)
    nu = sum(0.001 * 0.999 ** (t - 1 - i) * g**2 for i, g in enumerate(seen)) / (1 - 0.999**t)
    return mu / (np.sqrt(nu) + 1e-8)


def adafactor(name: str, value: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    """Shazeer & Stern (2018), algorithms 4 and 5, with the hyper-parameters of section 9."""
    row = column = whole = 0.0
    for t, g in enumerate(seen, start=1):
        beta = 1 - t**-0.8
        if g.ndim == 2:
            row = beta * row + (1 - beta) * (g**2 + 1e-30).sum(1)
            column = beta * column + (1 - beta) * (g**2 + 1e-30).sum(0)
            second = np.outer(row, column) / np.sum(row)
        else:
            second = whole = beta * whole + (1 - beta) * (g**2 + 1e-30)
    u = seen[-1] / np.sqrt(second)
    u = u / max(1, np.sqrt(np.mean(u**2)))
    return u * max(1e-3, np.sqrt(np.mean(value**2)))


def muon(name: str, value: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    """Jordan (2024), with optax's bias correction and the scale of Liu et al. (2025)."""
    if name in TABLES | PLAIN:
        return adam(name, value, seen)
    t = len(seen)
    m = MOMENTUM
    mu = sum((1 - m) * m ** (t - 1 - i) * g for i, g in enumerate(seen))
    x = m * mu / (1 - m ** (t + 1)) + (1 - m) * seen[-1] / (1 - m**t)
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return 0.2 * np.sqrt(max(x.shape)) * x


def test_adamw_is_the_paper_s():
    expect(trained(AXES), by_hand(adam))


def test_adafactor_takes_each_layer_s_matrix_by_itself(monkeypatch):
    monkeypatch.setattr(FACTORED_FROM, 2)
    expect(trained(AXES, name="adafactor"), by_hand(adafactor), 1e-4)


def test_muon_takes_each_layer_s_matrix_by_itself():
    expect(trained(AXES, name="muon", momentum=MOMENTUM), by_hand(muon), 1e-3)


def test_matrices_are_told_by_their_axes():
    assert matrix_dims(("layers", "embed", "kv_heads", "head_dim")) == MatrixDims((1, 2, 3), (1,), (2, 3), False)
    assert matrix_dims(("layers", "heads", "head_dim", "embed")) == MatrixDims((1, 2, 3), (1, 2), (3,), False)
    assert matrix_dims(("layers", "embed", "gates", "hidden")) == MatrixDims((1, 3), (1,), (3,), False)
    assert matrix_dims(("embed", "classes")) == MatrixDims((0, 1), (0,), (1,), True)
    assert matrix_dims(("layers", "heads", "head_dim")) == MatrixDims((1, 2), (), (), False)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_of_a_family_is_a_matrix(family):
    """All but embeddings, output layers, norms, biases and the vector of additive attention.

    A new axis name must not make them vectors.
    """
    for name, axes in flatten(tiny(family).axes).items():
        block = matrix_dims(axes)
        vector = name.endswith(("_bias", "_scale", "/energy")) and not name.endswith("relative_bias")
        assert bool(block.rows) != vector, name
        kind = name.split("/")[-1]
        table = kind in ("tokens", "positions", "types", "unembed", "relative_bias", "out", "detect_out")
        assert not block.rows or block.table == table, name


def test_weight_decay_spares_biases_and_norms():
    mask = decay_mask(draw(SHAPES, 0))
    assert {name for name, decays in mask.items() if not decays} == PLAIN


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["optimizer.name=adafactor", "optimizer.b2=0.99"], "b2: adafactor has none; leave it out"),
        (["optimizer.name=adafactor", "optimizer.moment_dtype=bfloat16"], "moment_dtype: adafactor has none"),
        (["optimizer.momentum=0.9"], "momentum: adamw has none"),
        (["optimizer.name=sgd"], "optimizer.name"),
        (["optimizer.moment_dtype=float16"], "optimizer.moment_dtype"),
    ],
)
def test_keys_that_would_be_ignored_are_refused(tmp_path, capsys, keys, message):
    assert run("finetune", "--config", write_config(tmp_path), *keys) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["adafactor", "muon-bfloat16"])
def test_a_run_by_another_rule_learns(tmp_path, choice):
    rate = {"adafactor": 0.05, "muon-bfloat16": 5e-3}[choice]
    sizes = {"num_layers": 1, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "max_positions": 64}
    config = write_config(
        tmp_path, model={"config": sizes}, optimizer={"learning_rate": rate, "offload": True, **CHOICES[choice]},
        data={"test": None, "max_shapes": 1},
        train={"batch_size": 16, "epochs": 8, "eval_every": 32, "grad_accum_steps": 2}, mesh={"preset": "fsdp"},
    )  # fmt: skip
    assert run("finetune", "--config", config) == 0
    assert json.loads((tmp_path / "runs/tiny/summary.json").read_text())["scores"]["validation"]["roc_auc"] > 0.9


@pytest.mark.parametrize(
    ("warmup", "total", "steps"),
    [(0.1, 25, 3), (0.1, 30, 3), (0.07, 100, 8), (2.5, 10, 3), (10, 10, 10), (0.001, 5, 1)],
)
def test_a_fraction_of_a_step_of_warm_up_is_a_whole_one(warmup, total, steps):
    """As `TrainingArguments.get_warmup_steps` rounds (0.07 x 100 is a little above 7 in floating point)."""
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, warmup=warmup, schedule="constant"), total)
    assert float(schedule(steps)) == 1.0 and float(schedule(steps - 1)) == pytest.approx((steps - 1) / steps)


def test_a_warm_up_beyond_the_last_step_is_refused():
    with pytest.raises(UserError, match="optimizer.warmup=1000: the run has 100 steps; expected at most as many"):
        make_schedule(OptimizerConfig(warmup=1000), 100)
