"""Every mesh preset computes what one device computes: loss, each gradient, each task's evaluation metrics."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from meshes import FAMILIES_HERE, MESHES, WIDER, model_of, rules_of, step_of
from tiny import weights
from tinylm import write_pretraining
from tinyrun import rows, write_config, write_jsonl

from jaxlm.configfile import load_config
from jaxlm.errors import UserError
from jaxlm.loaders import make_evaluator
from jaxlm.models.base import flatten
from jaxlm.prepare import Prepared, prepare
from jaxlm.sharding import Rules


def assert_same_step(family: str, mesh: str, chunk: int | None = None) -> None:
    expected, actual = step_of(family, None), step_of(family, mesh, chunk)
    np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-5)
    assert actual.grads.keys() == expected.grads.keys()
    for name, grad in expected.grads.items():
        scale = max(1.0, float(np.abs(grad).max()))
        np.testing.assert_allclose(actual.grads[name], grad, rtol=0, atol=1e-5 * scale, err_msg=name)
        # A gradient that is 0 would be equal whatever the mesh; a softmax does not see what is added to all its keys.
        assert np.abs(grad).max() > 1e-6 or name.endswith("/k_bias"), name


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_loss_and_gradients_are_those_of_one_device(family, mesh):
    assert_same_step(family, mesh)


@pytest.mark.parametrize(("family", "mesh"), [("llama", "context"), ("t5", "fsdp_tp")])
def test_a_chunked_loss_is_that_of_one_device(family, mesh):
    assert_same_step(family, mesh, chunk=8)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", WIDER)
@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_wider_meshes(family, mesh):
    assert_same_step(family, mesh)
    if family != "bert":
        assert_same_step(family, mesh, chunk=8)


def on(prepared: Prepared, rules: Rules) -> Prepared:
    model = prepared.model
    return replace(prepared, model=replace(model, compute=replace(model.compute, rules=rules)))


def scores(prepared: Prepared, params: Any, rules: Rules) -> dict[str, float]:
    placed = on(prepared, rules)
    if rules.mesh is not None:
        params = jax.tree.map(lambda p, s: jax.device_put(p, s.sharding), params, placed.model.shapes)
    return make_evaluator(placed).evaluate(params, placed.splits["validation"]).scores


def assert_same_scores(prepared: Prepared, mesh: str, expected: dict[str, float], params: Any) -> None:
    """Counts and what is made of them to the last digit; what sums real numbers to float32's."""
    actual = scores(prepared, params, rules_of(mesh))
    assert actual == pytest.approx(expected, rel=1e-5, abs=1e-6)
    counted = [name for name in expected if name.startswith(("accuracy", "f1", "precision", "recall"))]
    assert [actual[name] for name in counted] == [expected[name] for name in counted]


EVALUATED = ("fsdp", "fsdp_tp", "context")
PROBLEMS = {"binary": "label", "multiclass": "kind", "multilabel": "tags", "regression": "score"}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_metrics_of_classification(tmp_path, problem):
    """21 rows and a batch of 8 packed rows or more: the last batch is ragged."""
    for seed, (name, number) in enumerate({"train": 32, "validation": 21, "test": 3}.items()):
        content = rows(number, seed)
        for i, row in enumerate(content):
            row |= {"kind": "abc"[i % 3], "tags": [t for t in "xyz" if (i + ord(t)) % 2], "score": i % 7 / 3}
        write_jsonl(tmp_path / f"{name}.jsonl", content)
    task = {"text": "text", "label": PROBLEMS[problem], "problem": problem}
    path = write_config(tmp_path, task=task, data={"max_length": 48, "eval_rows": 5})
    prepared = prepare(load_config(path))
    params = weights(prepared.model)
    expected = scores(prepared, params, Rules())
    assert len(expected) > 1
    for mesh in EVALUATED if problem == "multiclass" else ("fsdp_tp",):
        assert_same_scores(prepared, mesh, expected, params)


PRETRAINING = {
    "causal_lm": EVALUATED,
    "masked_lm": ("fsdp_tp", "context"),
    "prefix_lm": ("context",),
    "replaced_tokens": ("fsdp",),
    "span_corruption": ("fsdp_tp", "context"),
}


@pytest.mark.parametrize("kind", PRETRAINING)
def test_metrics_of_pretraining(tmp_path, kind):
    """As many rows to a batch as no mesh divides. Replaced tokens are drawn by their place in a batch: there, as many
    as all meshes divide, and the last batch is ragged."""
    eval_rows = 8 if kind == "replaced_tokens" else 5
    prepared = prepare(load_config(write_pretraining(tmp_path, kind, data={"eval_rows": eval_rows})))
    params = weights(prepared.model)
    expected = scores(prepared, params, Rules())
    assert expected["loss"] > 1
    for mesh in PRETRAINING[kind]:
        assert_same_scores(prepared, mesh, expected, params)


@functools.cache
def listing(family: str) -> str:
    """The PartitionSpec of each parameter, by mesh; an axis that is whole is left out."""
    names = (*MESHES, "context_fsdp_tp")
    models = {name: model_of(family, rules_of(name)) for name in names}
    lines = [f"# {family}: mesh axes of each dimension, `-` where it is whole"]
    lines += [f"# {name}: " + ", ".join(f"{a} {n}" for a, n in rules_of(name).mesh.shape.items()) for name in names]
    shapes = {name: flatten(model.shapes) for name, model in models.items()}
    for parameter, axes in flatten(models["ddp"].axes).items():
        lines += ["", f"{parameter}  ({', '.join(axes)})"]
        for name in names:
            spec = shapes[name][parameter].sharding.spec
            parts = ["-" if p is None else p if isinstance(p, str) else "+".join(p) for p in spec]
            lines.append(f"  {name:16}{'  '.join(parts)}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_layouts_are_as_listed(family, request):
    golden = request.path.parent / "golden" / f"{family}_layout.txt"
    assert listing(family) == golden.read_text(encoding="utf-8")


def test_a_row_that_context_does_not_divide_is_refused(tmp_path):
    sizes = {"context": 8, "preset": "context"}
    prepared = prepare(load_config(write_pretraining(tmp_path, "causal_lm", data={"max_length": 36}, mesh=sizes)))
    params, _ = prepared.init_params()
    with pytest.raises(UserError, match=r"mesh.context=8: rows of 36 columns .* make data.row_length .* a multiple"):
        make_evaluator(prepared).evaluate(params, prepared.splits["validation"])
