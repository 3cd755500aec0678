"""What a step costs, by counts that do not wobble: operations, transfers from the host, compilations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from helpers.compilations import count_compilations
from helpers.finetuning_runs import rows, run, write_config, write_jsonl

from jaxlm.config.loading import load_config
from jaxlm.setup.setup import make_setup
from jaxlm.training.plan import Plan, make_plan

WIDE = {"num_layers": 2, "embed_dim": 128, "num_heads": 2, "mlp_dim": 512, "max_positions": 64}


def forward_products(rows: int, length: int, slots: int) -> int:
    """Operations of the forward pass's products; the last layer answers at the slots alone."""
    width, mlp = WIDE["embed_dim"], WIDE["mlp_dim"]
    square, maps = width * width, 2 * width * mlp
    whole = length * (4 * square + maps) + 2 * length * length * width
    last = length * 2 * square + slots * (2 * square + maps) + 2 * slots * length * width
    return 2 * rows * (whole + last + slots * (square + 2 * width))


@pytest.fixture
def compiled() -> Iterator[Counter[str]]:
    with count_compilations() as found:
        yield found


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[Plan]:
    config = write_config(tmp_path, model={"config": WIDE}, data={"max_shapes": 1, "validation": None, "test": None})
    plan = make_plan(make_setup(load_config(config), splits=("train",), devices=jax.devices()[:1]))
    yield plan
    plan.loader.close()


def test_a_step_computes_its_products_once_and_moves_nothing_but_its_batch(plan, compiled):
    batch = next(plan.loader)
    state, arrays = plan.abstract_state(), plan.abstract_batch(batch)
    program = plan.step.lower(state, arrays).compile()
    products = 3 * forward_products(*batch["tokens"].shape, batch["slot_positions"].shape[1])
    # Norms, softmax, dropout and AdamW are few operations beside the products of a network 128 wide.
    assert 1 <= program.cost_analysis()["flops"] / products < 1.15

    values, _ = plan.init_state()
    compiled.clear()
    for _ in range(3):
        placed = plan.to_device(next(plan.loader))
        with jax.transfer_guard("disallow"):
            values, _ = plan.step(values, placed)
    assert not compiled["jit(step)"]


@pytest.mark.slow
def test_a_run_compiles_its_step_once_for_each_shape(tmp_path, compiled, capsys):
    write_jsonl(tmp_path / "train.jsonl", rows(200))
    data = {"max_shapes": 2, "max_length": 16, "test": None}
    config = write_config(tmp_path, data=data, train={"batch_size": 32, "epochs": 3})
    assert run("finetune", "--config", config) == 0
    said = capsys.readouterr()
    shapes = (said.out + said.err).count("compiling the step (shape")
    assert compiled["jit(step)"] == shapes <= 2
