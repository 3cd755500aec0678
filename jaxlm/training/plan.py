"""A run, compiled into functions: loader, optimizer, train step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import optax

from jaxlm.data.examples.example import HOST_ONLY, Batch
from jaxlm.errors import UserError
from jaxlm.optim import make_optimizer, make_schedule
from jaxlm.parallel.placement import to_device
from jaxlm.parallel.sharding import batch_shardings
from jaxlm.setup.setup import Prepared
from jaxlm.training.loaders import Loader, make_loader
from jaxlm.training.state import TrainState, abstract_state, init_state, offloaded, state_shardings
from jaxlm.training.step import make_train_step

DEFAULT_EPOCHS = 3.0


@dataclass(frozen=True)
class Plan:
    """A run, compiled into functions: what `run_training`, `--dry-run` and the benchmark share."""

    prepared: Prepared
    loader: Loader
    total_steps: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    step: Any
    """Jitted (state, batch) -> (state, metrics); the state is donated."""

    def to_device(self, batch: Batch) -> dict[str, jax.Array]:
        """Splits a loader's batch into micro-batches [K, R / K, ...] and puts it on the mesh."""
        micro = self.prepared.config.train.accumulation
        used = {key: value for key, value in batch.items() if key not in HOST_ONLY}
        split = {key: value.reshape(micro, -1, *value.shape[1:]) for key, value in used.items()}
        return to_device(split, self.prepared.rules, leading=1)

    def abstract_batch(self, batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
        """What `to_device` would return, as ShapeDtypeStructs with shardings."""
        micro = self.prepared.config.train.accumulation
        shapes = {
            key: jax.ShapeDtypeStruct((micro, value.shape[0] // micro, *value.shape[1:]), value.dtype)
            for key, value in batch.items()
            if key not in HOST_ONLY
        }
        shardings = batch_shardings(shapes, self.prepared.rules, leading=1)
        return {key: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=shardings[key]) for key, s in shapes.items()}

    @property
    def key(self) -> jax.Array:
        """Key of the dropout masks; differs from that of the parameters."""
        return jax.random.key(self.prepared.config.seed + 1)

    def init_state(self) -> tuple[TrainState, tuple[str, ...]]:
        """The state before the first step, and the names of the parameters that no checkpoint held."""
        params, initialised = self.prepared.init_params()
        offload = self.prepared.config.optimizer.offload
        return init_state(params, self.optimizer, self.key, self.prepared.rules, offload=offload), initialised

    def abstract_state(self) -> TrainState:
        prepared, offload = self.prepared, self.prepared.config.optimizer.offload
        return abstract_state(prepared.model.shapes, self.optimizer, self.key, prepared.rules, offload=offload)


def make_plan(prepared: Prepared, loader: Loader | None = None) -> Plan:
    """Builds loader, optimizer and train step of a prepared run; `loader` stands in for the run's own."""
    config = prepared.config
    train = config.train
    loader = make_loader(prepared) if loader is None else loader
    epochs = DEFAULT_EPOCHS if train.epochs is None else train.epochs
    total = train.steps if train.steps is not None else max(1, round(epochs * (loader.steps_per_epoch or 0)))
    if loader.steps_per_epoch is None and train.eval_every == "epoch" and "validation" in prepared.splits:
        raise UserError("train.eval_every: expected a number of steps with data.tokenize=stream, which knows no epochs")
    schedule = make_schedule(config.optimizer, total)
    model, offload = prepared.model, config.optimizer.offload
    optimizer = make_optimizer(config.optimizer, total, model.axes)
    if offload:
        optimizer = offloaded(optimizer, model.shapes, prepared.rules)
    shardings = state_shardings(model.shapes, optimizer, prepared.rules, offload=offload)
    chunk = None if config.model.logits_chunk == "auto" else config.model.logits_chunk
    loss = prepared.task.loss(train.label_smoothing, chunk)
    step = jax.jit(
        make_train_step(prepared.model.apply, loss, optimizer, schedule),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    return Plan(prepared, loader, total, optimizer, schedule, step)
