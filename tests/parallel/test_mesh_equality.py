"""Every mesh preset computes what one device computes, loss and each gradient (evaluation: test_mesh_metrics.py)."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from helpers.mesh_steps import FAMILIES_HERE, MESHES, WIDER, model_of, rules_of, step_of
from helpers.pretraining_runs import write_pretraining

from jaxlm.config.loading import load_config
from jaxlm.errors import UserError
from jaxlm.models.base import flatten
from jaxlm.setup.setup import make_setup
from jaxlm.training.loaders import make_evaluator


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
    setup = make_setup(load_config(write_pretraining(tmp_path, "causal_lm", data={"max_length": 36}, mesh=sizes)))
    params, _ = setup.init_params()
    with pytest.raises(UserError, match=r"mesh.context=8: rows of 36 columns .* make data.row_length .* a multiple"):
        make_evaluator(setup).evaluate(params, setup.splits["validation"])
