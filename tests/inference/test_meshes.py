"""A run is evaluated and predicts on its own mesh or on the one asked for, its parameters split over that."""

from __future__ import annotations

import jax
import pytest
from helpers.finetuning_runs import rows, run, write_config

from jaxlm.errors import UserError
from jaxlm.inference.evaluate import evaluate_run
from jaxlm.inference.predict import open_predictor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A run on fsdp over eight devices."""
    folder = tmp_path_factory.mktemp("meshes")
    path = write_config(folder, train={"steps": 2, "epochs": None}, mesh={"preset": "fsdp", "fsdp": 8})
    assert run("finetune", "--config", path) == 0
    return str(folder / "runs/tiny")


def largest_share(params) -> float:
    """Of all parameters, what one device holds at most."""
    held: dict[int, int] = {}
    for leaf in jax.tree.leaves(params):
        for shard in leaf.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.size
    return max(held.values()) / sum(leaf.size for leaf in jax.tree.leaves(params))


def test_predictions_on_the_runs_mesh_and_on_others(directory):
    found, texts = {}, rows(9, seed=5)
    for name, overrides, share in (
        ("its own", [], 0.25),
        ("ddp", ["mesh.preset=ddp"], 1.0),
        ("tensor", ["mesh.preset=tp", "mesh.tensor=4", "mesh.data=2"], 0.6),
    ):
        predictor = open_predictor(directory, overrides=overrides)
        assert (held := largest_share(predictor.trained.params)) <= share, (name, held)
        found[name] = [row["prediction"] for row in predictor.predict(texts, name)]
    for other in ("ddp", "tensor"):
        for mine, theirs in zip(map(dict, found["its own"]), found[other], strict=True):
            assert mine.pop("label") == theirs.pop("label")
            assert mine == {key: pytest.approx(value, abs=1e-5) for key, value in theirs.items()}


def test_evaluation_on_the_mesh_asked_for(directory, monkeypatch):
    import jaxlm.inference.evaluate as evaluate

    opened = []
    real = evaluate.open_trained
    monkeypatch.setattr(evaluate, "open_trained", lambda *a, **k: opened.append(real(*a, **k)) or opened[-1])
    own = evaluate_run(directory)
    other = evaluate_run(directory, overrides=["mesh.preset=context", "mesh.context=2", "mesh.fsdp=4"])
    assert other == pytest.approx(own, abs=1e-5)
    assert [dict(x.setup.rules.mesh.shape)["context"] for x in opened] == [1, 2]
    assert all(largest_share(x.params) < 0.25 for x in opened)


def test_a_mesh_that_does_not_fit_is_refused_where_it_was_asked_for(directory):
    for refused in (
        lambda: evaluate_run(directory, overrides=["mesh.fsdp=3"]),
        lambda: open_predictor(directory, overrides=["mesh.fsdp=3"]),
        lambda: open_predictor(f"{directory}/model", overrides=["mesh.preset=fsdp", "mesh.fsdp=3"]),
    ):
        with pytest.raises(UserError, match="8 devices"):
            refused()
    with pytest.raises(UserError, match="override 'seed=2': predictions follow from the run; expected a key of mesh"):
        open_predictor(directory, overrides=["seed=2"])
    with pytest.raises(UserError, match="mesh.sdp"):
        open_predictor(directory, overrides=["mesh.sdp=2"])
