"""Each file of the newest and the best checkpoint, damaged: a saved state goes on, and what was lost is said."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import jax
from helpers.finetuning_runs import run, write_config
from helpers.saved_states import tree_digest

from jaxlm.config.loading import load_config
from jaxlm.setup.setup import make_setup
from jaxlm.training.checkpoint import Checkpointer
from jaxlm.training.plan import make_plan
from jaxlm.training.run import select_metric, start
from soaking.damage import FOUR
from soaking.outcomes import Outcomes, Said


def soak(folder: Path, outcomes: Outcomes) -> None:
    train = {"batch_size": 16, "steps": 12, "epochs": None, "eval_every": 2, "metric": "loss"}
    config_file = write_config(
        folder, train=train, checkpoint={"every": 2, "keep": 3}, optimizer={"learning_rate": 1e-1}
    )
    if run("finetune", "--config", config_file):
        outcomes.fault("an undisturbed run", "failed")
        return
    config = load_config(config_file)
    saved = folder / "runs/tiny/checkpoints"
    setup = make_setup(config, tokenizer_cache=folder / "runs/tiny/tokenizer")
    plan, metric = make_plan(setup), select_metric(setup)
    assert metric is not None

    def opened(directory: Path) -> Checkpointer:
        return Checkpointer(directory, keep=3, metric=metric.name, higher_is_better=metric.higher_is_better)

    def resume(directory: Path) -> tuple[int, str, int]:
        with opened(directory) as checkpoints:
            state, progress, _ = start(plan, checkpoints, metric)
            return int(state.step), tree_digest(state.params), progress.best.step

    with opened(saved) as checkpoints:
        newest, best = checkpoints.latest_step(), checkpoints.best_step()
        abstract = plan.abstract_state()._asdict()
        del abstract["frozen"]
        digests = {s: tree_digest(checkpoints.restore(abstract, s)[1]["params"]) for s in checkpoints.all_steps()}
    if newest == best:
        outcomes.fault("an undisturbed run", "its newest checkpoint is the best, so that only one would be damaged")
    rng = random.Random(1)
    for step in dict.fromkeys((newest, best)):
        files = sorted(path.relative_to(saved) for path in (saved / str(step)).rglob("*") if path.is_file())
        for file in files:
            for how, damage in FOUR.items():
                copy = folder / "copy"
                shutil.copytree(saved, copy)
                before = (copy / file).read_bytes()
                damage(copy / file, rng)
                intact = (copy / file).exists() and (copy / file).read_bytes() == before
                what = f"{'newest' if step == newest else 'best'} checkpoint, {how} {file}"
                with Said() as said:
                    found, problem = outcomes.attempt(what, lambda: resume(copy))  # noqa: B023
                _judge(outcomes, what, found, problem, digests, (newest, best), said.text, intact=intact)
                shutil.rmtree(copy)
    jax.clear_caches()


def _judge(
    outcomes: Outcomes, what: str, found: Any, problem: str | None, digests: dict[int, str], expected: tuple[Any, Any],
    said: str, *, intact: bool,
) -> None:  # fmt: skip
    if problem is not None:
        outcomes.add(what, problem)
        return
    step, digest, best = found
    if digest != digests.get(step):
        outcomes.fault(what, f"step {step} is not what was saved")
    elif (step, best) != expected and "damaged" not in said and "incomplete" not in said:
        outcomes.fault(what, f"steps {step} and {best} instead of {expected}, and nothing is said")
    elif (step, best) == expected:
        outcomes.add(what, "no harm" if not intact else "same bytes")
    else:
        outcomes.add(what, "said, went on from an earlier one" if step != expected[0] else "said, next best")
