"""Update rules beside those of PyTorch and Transformers, over steps with the same gradients (marker `parity`).

There a parameter is one layer's matrix; here layers are stacked, heads split, and query, key and value side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxlm.optim import make_optimizer
from jaxlm.optim.config import OptimizerConfig

pytestmark = pytest.mark.parity

# Sides of 128 and more, from which Adafactor factors second moments here; the others factor any matrix.
SHAPES = {"q": (2, 128, 4, 40), "fused": (2, 128, 3, 4, 32), "down": (2, 160, 128), "tokens": (150, 128),
          "q_bias": (2, 4, 40), "norm_scale": (128,)}  # fmt: skip
AXES = {"q": ("layers", "embed", "heads", "head_dim"), "fused": ("layers", "embed", "qkv", "heads", "head_dim"),
        "down": ("layers", "mlp", "embed"), "tokens": ("vocab", "embed"),
        "q_bias": ("layers", "heads", "head_dim"), "norm_scale": ("norm",)}  # fmt: skip
RATE, DECAY = 0.01, 0.1
Tree = dict[str, np.ndarray]


def draw(seed: int, scale: float) -> Tree:
    """Of another size in each layer, so that a mean over layers would show."""
    rng = np.random.default_rng(seed)
    made = {name: rng.normal(0, scale, shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {
        name: value if name in ("tokens", "norm_scale") else np.stack([value[0], 5 * value[1]])
        for name, value in made.items()
    }


def parts(tree: Tree) -> dict[str, np.ndarray]:
    """Each layer's matrices [outputs, inputs], as `torch.nn.Linear` has them, and vectors."""
    made = {"tokens": tree["tokens"], "norm_scale": tree["norm_scale"]}
    for i in range(2):
        made |= {f"q{i}": tree["q"][i].reshape(128, -1).T, f"down{i}": tree["down"][i].T}
        made |= {f"q{i}_bias": tree["q_bias"][i].reshape(-1)}
        made |= {f"fused{i}{k}": tree["fused"][i, :, k].reshape(128, -1).T for k in range(3)}
    return made


def ours(start: Tree, gradients: list[Tree], **keys: Any) -> list[Tree]:
    """The parameters after each step."""
    keys = {"learning_rate": RATE, "weight_decay": DECAY, "schedule": "constant", "clip_norm": None} | keys
    optimizer = make_optimizer(OptimizerConfig(**keys), len(gradients), AXES)
    params, state, update = start, optimizer.init(start), jax.jit(optimizer.update)
    seen = []
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = jax.device_get(optax.apply_updates(params, updates))
        seen.append(params)
    return seen


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def theirs(
    torch: Any, start: Tree, gradients: list[Tree], make: Callable[[list[Any], list[Any], list[Any]], list[Any]]
) -> list[dict[str, np.ndarray]]:
    """The same, part by part.

    Args:
      make: optimizers of the hidden matrices, the table, and the biases and norm scales, which do not decay.
    """
    params = {name: torch.nn.Parameter(torch.tensor(value.copy())) for name, value in parts(start).items()}
    hidden = [p for name, p in params.items() if p.ndim == 2 and name != "tokens"]
    plain = [p for name, p in params.items() if name.endswith(("_bias", "_scale"))]
    optimizers = make(hidden, [params["tokens"]], plain)
    seen = []
    for grads in gradients:
        for name, value in parts(grads).items():
            params[name].grad = torch.tensor(value.copy())
        for optimizer in optimizers:
            optimizer.step()
        seen.append({name: p.detach().numpy().copy() for name, p in params.items()})
    return seen


def expect_same_steps(
    found: list[Tree], wanted: list[dict[str, np.ndarray]], start: Tree, tolerance: float, skip: int = 0
) -> None:
    """Each change of the parameters but the first `skip` is the same, to a share of its largest number."""
    mine = [parts(tree) for tree in (start, *found)]
    for step, (before, after) in enumerate(zip([parts(start), *wanted], wanted, strict=False)):
        if step < skip:
            continue
        for name in after:
            moved, change = after[name] - before[name], mine[step + 1][name] - mine[step][name]
            np.testing.assert_allclose(
                change, moved, rtol=0, atol=tolerance * np.abs(moved).max(), err_msg=f"{name}, step {step + 1}"
            )


def test_adamw_is_torch_s(torch):
    start, gradients = draw(100, 0.1), [draw(seed, 0.01) for seed in range(6)]

    def make(hidden: list[Any], table: list[Any], plain: list[Any]) -> list[Any]:
        settings = {"lr": RATE, "betas": (0.9, 0.999), "eps": 1e-8}
        return [
            torch.optim.AdamW(hidden + table, weight_decay=DECAY, **settings),
            torch.optim.AdamW(plain, weight_decay=0.0, **settings),
        ]

    expect_same_steps(ours(start, gradients, name="adamw"), theirs(torch, start, gradients, make), start, 1e-4)


def test_adafactor_is_torch_s(torch):
    """PyTorch bounds the second moment from below by the square of its first epsilon, where the paper adds 1e-30; and
    its rate is at most 1 / sqrt(step), which 0.01 is not above in the first 10,000 steps."""
    start, gradients = draw(100, 0.1), [draw(seed, 0.01) for seed in range(6)]

    def make(hidden: list[Any], table: list[Any], plain: list[Any]) -> list[Any]:
        settings = {"lr": RATE, "eps": (1e-15, 1e-3)}
        return [
            torch.optim.Adafactor(hidden + table, weight_decay=DECAY, **settings),
            torch.optim.Adafactor(plain, weight_decay=0.0, **settings),
        ]

    expect_same_steps(ours(start, gradients, name="adafactor"), theirs(torch, start, gradients, make), start, 1e-4)


def test_adafactor_is_transformers_s(torch, transformers):
    """Without weight decay, which Transformers multiplies by the parameter's size, too: here it is AdamW's."""
    start, gradients = draw(100, 0.1), [draw(seed, 0.01) for seed in range(6)]

    def make(hidden: list[Any], table: list[Any], plain: list[Any]) -> list[Any]:
        settings = {"lr": RATE, "scale_parameter": True, "relative_step": False, "warmup_init": False}
        return [transformers.optimization.Adafactor(hidden + table + plain, **settings)]

    found = ours(start, gradients, name="adafactor", weight_decay=0.0)
    expect_same_steps(found, theirs(torch, start, gradients, make), start, 1e-4)


def test_muon_is_torch_s(torch, monkeypatch):
    """Of the first step, and where the momentum has forgotten its beginning.

    Between these the mean of gradients is freed here of its bias towards 0 (optax, as Adam does), in PyTorch it is not,
    so that the newest gradient weighs less there: in step t at momentum m by a factor of (1 - m^t) / (1 - m^(t + 1)),
    with m = 0.5 and t = 20 within 1e-6 of 1. And PyTorch orthogonalizes in bfloat16; here it is made to use float32.
    """
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    start, gradients = draw(100, 0.1), [draw(seed, 0.01) for seed in range(24)]

    def make(hidden: list[Any], table: list[Any], plain: list[Any]) -> list[Any]:
        adam = {"lr": RATE, "betas": (0.9, 0.999), "eps": 1e-8}
        return [
            torch.optim.Muon(hidden, lr=RATE, weight_decay=DECAY, momentum=0.5, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(table, weight_decay=DECAY, **adam),
            torch.optim.AdamW(plain, weight_decay=0.0, **adam),
        ]

    found, wanted = ours(start, gradients, name="muon", momentum=0.5), theirs(torch, start, gradients, make)
    expect_same_steps(found[:1], wanted[:1], start, 1e-3)
    expect_same_steps(found, wanted, start, 1e-3, skip=20)
