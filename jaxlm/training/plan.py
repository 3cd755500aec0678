"""A run, compiled into functions: loader, optimizer, train step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import optax

from jaxlm.data.examples.example import HOST_ONLY, Batch
from jaxlm.optim import make_optimizer, make_schedule
from jaxlm.parallel.placement import shard_batch
from jaxlm.parallel.sharding import batch_shardings
from jaxlm.setup.setup import Setup
from jaxlm.training.gradients import accumulated_gradients, without_frozen
from jaxlm.training.loaders import Loader, make_loader
from jaxlm.training.state import NO_PARAMS, TrainState, abstract_state, init_state, offloaded, state_shardings
from jaxlm.training.step import make_train_step

DEFAULT_EPOCHS = 3.0


@dataclass(frozen=True)
class Plan:
    """A run, compiled into functions: what `run_training`, `--dry-run` and the benchmark share."""

    setup: Setup
    loader: Loader
    total_steps: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    step: Any
    """Jitted (state, batch) -> (state, metrics); the state is donated."""

    def to_device(self, batch: Batch) -> dict[str, jax.Array]:
        """Splits a loader's batch into micro-batches [K, R / K, ...] and puts it on the mesh."""
        micro = self.setup.config.train.grad_accum_steps
        used = {key: value for key, value in batch.items() if key not in HOST_ONLY}
        split = {key: value.reshape(micro, -1, *value.shape[1:]) for key, value in used.items()}
        return shard_batch(split, self.setup.rules, leading=1)

    def abstract_batch(self, batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
        """What `shard_batch` would return, as ShapeDtypeStructs with shardings."""
        micro = self.setup.config.train.grad_accum_steps
        shapes = {
            key: jax.ShapeDtypeStruct((micro, value.shape[0] // micro, *value.shape[1:]), value.dtype)
            for key, value in batch.items()
            if key not in HOST_ONLY
        }
        shardings = batch_shardings(shapes, self.setup.rules, leading=1)
        return {key: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=shardings[key]) for key, s in shapes.items()}

    @property
    def key(self) -> jax.Array:
        """Key of the dropout masks; differs from that of the parameters."""
        return jax.random.key(self.setup.config.seed + 1)

    def init_state(self) -> tuple[TrainState, tuple[str, ...]]:
        """The state before the first step, and the names of the parameters that no checkpoint held."""
        params, initialised = self.setup.init_params()
        offload = self.setup.config.optimizer.offload
        return init_state(params, self.optimizer, self.key, self.setup.rules, offload=offload), initialised

    def init_frozen(self) -> Any:
        """Returns the parameters that are not trained; made at every start, since no checkpoint holds them."""
        return NO_PARAMS

    def abstract_state(self) -> TrainState:
        setup, offload = self.setup, self.setup.config.optimizer.offload
        return abstract_state(setup.model.shapes, self.optimizer, self.key, setup.rules, offload=offload)


def make_plan(setup: Setup, loader: Loader | None = None) -> Plan:
    """Builds loader, optimizer and train step of a run; `loader` stands in for the run's own."""
    config = setup.config
    train = config.train
    loader = make_loader(setup) if loader is None else loader
    epochs = DEFAULT_EPOCHS if train.epochs is None else train.epochs
    total = train.steps if train.steps is not None else max(1, round(epochs * (loader.steps_per_epoch or 0)))
    schedule = make_schedule(config.optimizer, total)
    model, offload = setup.model, config.optimizer.offload
    optimizer = make_optimizer(config.optimizer, total, model.axes)
    if offload:
        optimizer = offloaded(optimizer, model.shapes, setup.rules)
    shardings = state_shardings(model.shapes, optimizer, setup.rules, offload=offload)
    chunk = config.model.chunk
    loss = setup.task.loss(train.label_smoothing, chunk)
    step = jax.jit(
        make_train_step(accumulated_gradients(without_frozen(setup.model.apply), loss), optimizer, schedule),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    return Plan(setup, loader, total, optimizer, schedule, step)
