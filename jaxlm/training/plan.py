"""A run, compiled into functions: loader, optimizer, train step."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import optax

from jaxlm.data.dataset import Loader
from jaxlm.data.examples.example import Examples
from jaxlm.errors import UserError
from jaxlm.fields import Batch
from jaxlm.optim import make_schedule
from jaxlm.optim.average import average_of
from jaxlm.parallel.placement import micro_batches, shard_batch
from jaxlm.parallel.sharding import batch_shardings
from jaxlm.setup.setup import Setup
from jaxlm.training.objective import build_gradients
from jaxlm.training.optimizer import build_optimizer
from jaxlm.training.state import TrainState, abstract_state, init_state, state_shardings
from jaxlm.training.step import make_train_step

log = logging.getLogger("jaxlm")

DEFAULT_EPOCHS = 3.0


@dataclass(frozen=True)
class Plan:
    """What `run_training`, `--dry-run` and the benchmarks share.

    Attributes:
      step: jitted (state, batch) -> (state, metrics); the state is donated.
    """

    setup: Setup
    loader: Loader
    total_steps: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    step: Any

    def to_device(self, batch: Batch) -> dict[str, jax.Array]:
        """Splits a loader's batch into micro-batches [K, B / K, ...] and puts it on the mesh."""
        split = micro_batches(batch, self.setup.config.train.grad_accum_steps)
        return shard_batch(split, self.setup.rules, self.setup.task.fields, leading=1)

    def abstract_batch(self, batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns what `to_device` would, as ShapeDtypeStructs with shardings."""
        split = micro_batches(batch, self.setup.config.train.grad_accum_steps)
        shardings = batch_shardings(split, self.setup.rules, self.setup.task.fields, leading=1)
        return {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=shardings[name])
            for name, value in split.items()
        }

    @property
    def key(self) -> jax.Array:
        """Key of the dropout masks; differs from that of the parameters."""
        return jax.random.key(self.setup.config.seed + 1)

    @cached_property
    def held_out(self) -> dict[str, str]:
        """Fingerprints of the validation and test data, by split, as checkpoints keep them."""
        splits = (split for split in ("validation", "test") if split in self.setup.datasets)
        return {split: self.setup.datasets[split].fingerprint() for split in splits}

    def init_state(self) -> tuple[TrainState, tuple[str, ...]]:
        """The state before the first step, and the names of the parameters that no checkpoint held."""
        setup, offload = self.setup, self.setup.config.optimizer.offload
        params, initialized = setup.init_params()
        trained, frozen = setup.split.split(params)
        state = init_state(trained, self.optimizer, self.key, setup.rules, frozen=frozen, offload=offload)
        return state, initialized

    def init_frozen(self) -> Any:
        """Returns the parameters that are not trained; made at every start, since no checkpoint holds them."""
        split = self.setup.split
        if not jax.tree.leaves(split.split(self.setup.shapes)[1]):
            return {}
        return split.split(self.setup.init_params()[0])[1]

    def scored_params(self, state: TrainState) -> Any:
        """Returns the trained parameters that are evaluated and exported: their average where the run keeps one."""
        mean = average_of(state.opt_state)
        if mean is None or not self.setup.config.optimizer.offload:
            return state.params if mean is None else mean
        return jax.tree.map(lambda m, p: jax.device_put(m, p.sharding), mean, state.params)

    def model_params(self, state: TrainState) -> Any:
        """Returns the model's own parameters as they are exported: trained and frozen ones, adapters merged in."""
        setup = self.setup
        params = setup.split.restore(setup.split.merge(self.scored_params(state), state.frozen))
        return params if setup.adapters is None else setup.adapters.fold(params)

    def abstract_state(self) -> TrainState:
        setup, offload = self.setup, self.setup.config.optimizer.offload
        trained, frozen = setup.split.split(setup.shapes)
        return abstract_state(trained, self.optimizer, self.key, setup.rules, frozen=frozen, offload=offload)


def _warn_of_a_short_epoch(batch_size: int, examples: Examples | None) -> None:
    """Says that all training data are one batch, unless they fill it."""
    rows = None if examples is None else len({example.row for example in examples.examples})
    if rows is None or rows < batch_size:
        log.warning(
            "train.batch_size=%d is more than the training data%s: an epoch is one step",
            batch_size, "" if rows is None else f", {rows:,} rows",
        )  # fmt: skip


def make_plan(setup: Setup) -> Plan:
    """Builds loader, optimizer and train step of a run.

    Raises:
      UserError: no training data, or a batch that does not divide over the devices.
    """
    config, train = setup.config, setup.config.train
    if "train" not in setup.datasets:
        raise UserError("data.train: expected a source of training rows")
    loader = setup.datasets["train"].loader(setup.layout)
    epochs = DEFAULT_EPOCHS if train.epochs is None else train.epochs
    total = train.steps if train.steps is not None else max(1, round(epochs * (loader.steps_per_epoch or 0)))
    examples = setup.datasets["train"].examples()
    if loader.steps_per_epoch == 1 and train.batch_tokens is None:
        _warn_of_a_short_epoch(train.batch_size, examples)
    if total >= 2**31:
        raise UserError(f"train.steps, train.epochs: {total} steps; expected less than {2**31}")
    schedule = make_schedule(config.optimizer, total)
    offload = config.optimizer.offload
    trained, frozen = setup.split.split(setup.shapes)
    optimizer = build_optimizer(setup, trained, total)
    shardings = state_shardings(trained, optimizer, setup.rules, frozen=frozen, offload=offload)
    gradients = build_gradients(setup, trained, grouped=examples is not None and examples.grouped)
    step = jax.jit(
        make_train_step(gradients, optimizer, schedule),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    return Plan(setup, loader, total, optimizer, schedule, step)
