"""The evaluation metrics of every task on every mesh preset, beside those of one device.

What is counted or ranked is equal. What sums real numbers is equal to 1e-6 (of itself, or of 1 where it is less), since
float32 sums depend on their order; and to the digit as it is printed, with four decimals (`track`, `cli.score_lines`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from helpers.finetuning_runs import rows, write_config, write_jsonl
from helpers.mesh_steps import MESHES, rules_of
from helpers.pretraining_runs import write_pretraining
from helpers.tiny_models import weights

from jaxlm.config.loading import load_config
from jaxlm.errors import UserError
from jaxlm.inference import evaluator
from jaxlm.inference.trained import make_evaluator
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.placement import shard_batch
from jaxlm.parallel.sharding import Rules
from jaxlm.setup.setup import Setup, make_setup
from jaxlm.tokenizer.families import FAMILIES

REAL = {
    "loss",
    "perplexity",
    "bits_per_byte",
    "generator_loss",
    "discriminator_loss",
    "pearson",
    "mse",
    "mae",
    "r2",
    "ece",
}
LABELS = {"binary": "label", "multiclass": "kind", "multilabel": "tags", "regression": "score"}
CHARACTERS = {"train_tokenizer": {"type": "char", "family": "bert"}}
# Of few tokens, so that a perplexity with four decimals has no more digits than float32.
PRETRAINING: dict[str, dict[str, Any]] = {
    "causal_lm": {},
    "prefix_lm": {},
    "masked_lm": {"model": CHARACTERS},
    "span_corruption": {"model": {"train_tokenizer": {"type": "char", "family": "t5"}}},
    # What is drawn for a token depends on its row's place in a batch: as many rows to a batch as every mesh divides.
    # Of the generator's two heads each device of `tensor` has one.
    "replaced_tokens": {"model": CHARACTERS, "task": {"generator_size": 0.5}, "data": {"eval_rows": 8}},
}
ROWS = 5
"""To a batch: no mesh divides them."""


class Case(NamedTuple):
    """A task's model, and its scores on one device."""

    setup: Setup
    params: Any
    scores: dict[str, float]


def write_labelled(folder: Path, problem: str) -> Path:
    """Texts, for the binary problem pairs; read by BERT, for regression by GPT-2 (at each example's last token)."""
    for seed, (name, number) in enumerate({"train": 32, "validation": 61}.items()):
        content = rows(number, seed)
        for i, row in enumerate(content):
            row |= {"kind": "abc"[i % 3], "tags": [t for t in "xyz" if (i + ord(t)) % 2], "score": i % 7 / 3}
            row |= {"other": content[i - 1]["text"]}
        write_jsonl(folder / f"{name}.jsonl", content)
    text = ["text", "other"] if problem == "binary" else "text"
    model = {"family": "gpt2", "train_tokenizer": {"type": "char"}} if problem == "regression" else {}
    task = {"text": text, "label": LABELS[problem], "problem": problem}
    return write_config(folder, model=model, task=task, data={"test": None, "eval_rows": ROWS, "max_length": 64})


def scorer(rules: Rules, setup: Setup) -> Callable[[Any], dict[str, float]]:
    """Returns what scores parameters on a split whose last batch is ragged."""
    model = replace(setup.model, compute=replace(setup.model.compute, rules=rules))
    made = make_evaluator(replace(setup, model=model))

    def scores(params: Any) -> dict[str, float]:
        if rules.mesh is not None:
            params = jax.tree.map(lambda p, s: jax.device_put(p, s.sharding), params, model.shapes)
        seen: list[Any] = []

        def record(batch: Any, rules: Rules, fields: Any) -> Any:
            seen.append(batch)
            return shard_batch(batch, rules, fields)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluator, "shard_batch", record)
            found = made.evaluate(*setup.split.split(params), setup.datasets["validation"]).scores
        filled = [batch["weights"].any(1) for batch in seen]
        assert len(filled) > 1 and filled[0].all() and not filled[-1].all()
        return found

    return scores


def telling(scores: dict[str, float]) -> bool:
    """Whether no score is 0, no mean is 1, and no printed digit would be another by 2e-5 more or less."""
    real = [value for name, value in scores.items() if name in REAL]
    means = [value for name, value in scores.items() if name not in REAL and "/" not in name]
    clear = all(abs(abs(value) * 1e4 % 1 - 0.5) > 0.2 for value in real)
    return clear and all(scores.values()) and all(value < 1 for value in means)


@pytest.fixture(scope="module")
def case_of(tmp_path_factory) -> Callable[[str], Case]:
    return functools.cache(lambda task: make_case(task, tmp_path_factory.mktemp(task)))


def make_case(task: str, folder: Path) -> Case:
    """The first weights with `telling` scores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "t5", replace(FAMILIES["t5"], extra_ids=8))  # sentinels, of 100
        if task in LABELS:
            path, scale = write_labelled(folder, task), np.float32(1)
        else:
            sections = {"data": {"eval_rows": ROWS}, **PRETRAINING[task]}
            path, scale = write_pretraining(folder, task, **sections), np.float32(0.5)
        setup = make_setup(load_config(path, ["model.unroll=1"]))
    score = scorer(Rules(), setup)
    for seed in range(400):
        params = jax.tree.map(lambda x: scale * x, weights(setup.model, seed))
        scores = score(params)
        if telling(scores):
            break
    assert telling(scores), scores
    return Case(setup, params, scores)


def chosen() -> list[Any]:
    """Pairs of a task and a mesh; those beside three to a task are slow.

    Every task meets a mesh that splits its weights and one that splits its rows' columns; of the meshes that split rows
    alone, each one in turn.
    """
    rows_alone = ("ddp", "fsdp", "hybrid")
    found = []
    for turn, task in enumerate((*LABELS, *PRETRAINING)):
        wanted = {"context", ("tp", "fsdp_tp")[turn % 2], rows_alone[turn % 3]}
        found += [pytest.param(task, mesh, marks=[] if mesh in wanted else pytest.mark.slow) for mesh in MESHES]
    return found


@pytest.mark.parametrize(("task", "mesh"), chosen())
def test_metrics_are_those_of_one_device(case_of, task, mesh):
    case = case_of(task)
    found = scorer(rules_of(mesh), case.setup)(case.params)
    assert found.keys() == case.scores.keys()
    counted = found.keys() - REAL
    assert {name: found[name] for name in counted} == {name: case.scores[name] for name in counted}
    assert found == pytest.approx(case.scores, rel=1e-6, abs=1e-6)
    assert {n: f"{v:.4f}" for n, v in found.items()} == {n: f"{v:.4f}" for n, v in case.scores.items()}


def test_a_row_that_context_does_not_divide_is_refused(tmp_path):
    """Before any text is read where the config says how long rows are, else when the batch is placed."""
    mesh = {"context": 8, "preset": "context"}
    path = write_pretraining(tmp_path, "causal_lm", data={"max_length": 36}, mesh=mesh)
    with pytest.raises(UserError, match=r"mesh.context=8: rows of data.max_length=36 columns cannot be split"):
        make_setup(load_config(path))
    rules = Rules(make_mesh("context", context=8))
    with pytest.raises(UserError, match=r"mesh.context=8: rows of 36 columns .* make data.row_length .* a multiple"):
        shard_batch({"tokens": np.zeros((2, 36), np.int32)}, rules)
