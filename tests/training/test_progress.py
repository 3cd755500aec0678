"""Best checkpoint, patience, and the sums behind log lines: what they count, and that JSON keeps them."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.training import EarlyStoppingConfig
from jaxlm.parallel.sharding import Rules
from jaxlm.training.progress import IN_FLIGHT, BestCheckpoint, Progress, StepMeter

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("higher", "min_delta", "values", "best", "stops_at"),
    [
        (True, 0, [0.5, 0.7, 0.7, 0.6], 2, 4),  # of equals the earliest; two without a gain are enough
        (False, 0, [0.5, 0.7, 0.4, 0.6, 0.3], 5, None),
        (True, 0, [NAN, None, NAN, 0.1], 4, None),  # undefined values never are the best, and cost no patience
        (True, 0, [None, 0.1, INF, -INF], 2, 4),
        (True, 0.1, [0.5, 0.55, 0.58, 0.9], 3, 3),  # small gains make a best checkpoint, but cost patience
        (False, 0.1, [0.5, 0.45, 0.3, 0.31], 3, None),
    ],
)
def test_best_checkpoint_and_patience(higher, min_delta, values, best, stops_at):
    rule = EarlyStoppingConfig(patience=2, min_delta=min_delta)
    found, ended = BestCheckpoint(higher), None
    for step, value in enumerate(values, 1):
        assert found.update(step, value, rule) == (found.step == step)
        assert json.loads(json.dumps(vars(found))) == vars(found)
        if found.stopped:
            ended = step
            break
    assert (found.step, ended) == (best, stops_at)
    never = BestCheckpoint(higher)
    for step, value in enumerate(values, 1):
        never.update(step, value, None)
    assert not never.stopped


def packed(rows: int) -> dict[str, np.ndarray]:
    """Rows of 8 columns, 5 tokens of two examples in each."""
    segments = np.tile(np.array([1, 1, 1, 2, 2, 0, 0, 0], np.int32), (rows, 1))
    return {"tokens": segments, "segment_ids": segments, "examples": np.tile(np.int32([0, 1, -1]), (rows, 1))}


def take(meter: StepMeter, rows: int, loss: float) -> None:
    with meter.time_step(packed(rows)):
        meter.add({"loss": jnp.float32(loss), "grad_norm": jnp.float32(1), "nonfinite": jnp.float32(0)})


def test_meter_counts_and_times_and_goes_on_after_a_restart():
    meter = StepMeter()
    for loss in (1, 2, 3, 4):
        take(meter, 2, loss)
    assert meter.losses == [1.0, 2.0][: 4 - IN_FLIGHT]  # the first compiles, the others may be in flight
    meter.wait()
    take(meter, 3, 5)  # a new shape: waits, and is not timed
    assert meter.losses == [1, 2, 3, 4, 5]
    meter.sum_counts(Rules())
    assert (meter.tokens, meter.examples, meter.cells) == (55, 22, 88)
    assert (meter.timed_tokens, meter.timed_examples) == (30, 12) and meter.seconds > 0
    assert 0 < meter.last_compile_seconds < meter.compile_seconds  # of the second shape, and of both
    stored = json.loads(json.dumps(Progress(BestCheckpoint(True), meter, 5).to_json()))
    again = Progress.from_json(stored, 5)
    assert again == Progress(BestCheckpoint(True), meter, 5)
    line = again.meter.flush(1e-3)
    assert line["loss"] == 3 and line["grad_norm"] == 1 and line["padding_share"] == 1 - 55 / 88
    assert line["tokens_per_s"] / line["examples_per_s"] == pytest.approx(2.5)
    take(again.meter, 2, 7)
    again.meter.sum_counts(Rules())
    assert again.meter.flush(1e-3)["loss"] == 7
    figures = again.meter.throughput()
    assert figures["compile_seconds"] > meter.compile_seconds  # a restart compiles anew
    assert figures["examples"] == 26 and figures["padding_share"] == 1 - 65 / 104


def test_rows_of_a_corpus_are_examples_and_both_streams_count():
    segments = np.array([[1, 1, 0, 0], [1, 2, 2, 0], [0, 0, 0, 0]], np.int32)
    batch = {"tokens": segments, "segment_ids": segments, "decoder_segment_ids": segments[:, :2]}
    meter = StepMeter()
    with meter.time_step(batch):
        pass
    meter.sum_counts(Rules())
    assert (meter.tokens, meter.examples, meter.cells) == (5 + 4, 2, 12 + 6)


@pytest.mark.parametrize(
    ("loss", "norm", "lost", "words"),
    [
        (NAN, 1.0, 0, "the loss is not finite"),
        (1.0, INF, 0, "the gradient norm is not finite"),
        (1.0, 1.0, 2, "2 parameters are not finite"),
        (1.0, 1.0, 0, None),
    ],
)
def test_a_diverged_step_is_named(loss, norm, lost, words):
    meter = StepMeter(losses=[1.0], norms=[1.0])
    with meter.time_step(packed(1)):
        meter.add({"loss": jnp.float32(loss), "grad_norm": jnp.float32(norm), "nonfinite": jnp.float32(lost)})
    meter.wait()
    assert meter.divergence() == words


def test_the_batch_that_diverged_is_known_after_later_steps():
    """Also after a resumption, as far as the batches since then go."""
    meter = StepMeter(losses=[1.0, 1.0], norms=[1.0, 1.0])
    batches = [packed(n) for n in (2, 3, 2, 2, 2)]
    for number, batch in enumerate(batches):
        with meter.time_step(batch):
            loss = jnp.float32(NAN if number >= 3 else 1.0)
            meter.add({"loss": loss, "grad_norm": jnp.float32(1.0), "nonfinite": jnp.float32(0)})
    assert meter.divergence() is None  # still in flight
    meter.wait()
    ago, examples = meter.culprit()
    assert ago == 1 and examples is batches[3]["examples"]
    assert StepMeter(losses=[NAN, 1.0], norms=[1.0, 1.0]).culprit() == (1, None)
