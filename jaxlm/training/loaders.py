"""The training loader and the evaluator of a setup run, by what it learns from: labelled rows or a corpus."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxlm.config.schema import Config
from jaxlm.data.corpus.dataset import CorpusSplit
from jaxlm.data.corpus.loader import CorpusLoader
from jaxlm.data.examples.example import Batch
from jaxlm.data.examples.loader import TrainLoader
from jaxlm.data.examples.shapes import Shapes, round_up
from jaxlm.errors import UserError
from jaxlm.inference.evaluate_corpus import CorpusEvaluator
from jaxlm.inference.evaluator import Evaluator
from jaxlm.parallel.placement import local_share
from jaxlm.parallel.sharding import Rules
from jaxlm.setup.setup import Setup


class EmptyRows:
    """Endless batches of a pretraining run's shapes that hold only padding: every row of a task has the same shapes."""

    steps_per_epoch = None
    padding_share = 0.0
    fingerprint = "padding"

    def __init__(self, config: Config, task: Any, rules: Rules) -> None:
        rows = corpus_rows(config, rules)
        row = task.row([], np.random.default_rng(0))
        self._batch = {name: np.broadcast_to(array, (rows, *array.shape)) for name, array in row.items()}
        self.shapes = Shapes((config.data.max_length,), 1, (rows,), rows)

    def __next__(self) -> Batch:
        return self._batch

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


Loader = TrainLoader | CorpusLoader | EmptyRows
"""Endless training batches, with the state of an exact resume."""


def make_loader(setup: Setup) -> Loader:
    """Returns the endless training batches of a run.

    Raises:
      UserError: no training data, or a batch that does not divide.
    """
    config = setup.config
    train, data = config.train, config.data
    if "train" not in setup.splits:
        raise UserError("data.train: expected a source of training rows")
    split = setup.splits["train"]
    multiple = train.grad_accum_steps * setup.rules.num_batch_shards
    held = local_share(setup.rules, train.grad_accum_steps)
    if isinstance(split, CorpusSplit):
        rows = corpus_rows(config, setup.rules)
        shared: dict[str, Any] = {"build": setup.task.row, "rows": rows, "seed": config.seed}
        shared |= {"settings": setup.task.settings, "share": held}
        return CorpusLoader(list(zip(split.plans, split.weights, strict=True)), **shared)
    if data.batch_order == "balanced" and (train.batch_tokens or not data.packing):
        raise UserError(
            "data.batch_order=balanced: expected train.batch_size and data.packing=true; batches of "
            "train.batch_tokens are filled as they are, and padding would only grow by long and short examples in "
            "one batch"
        )
    return TrainLoader(
        split.examples,
        batch_size=None if train.batch_tokens else train.batch_size,
        batch_tokens=train.batch_tokens,
        packing=data.packing,
        row_length=data.row_length,
        max_length=data.max_length,
        max_shapes=data.max_shapes,
        row_multiple=multiple,
        pad_id=setup.tokenizer.pad_id or 0,
        seed=config.seed,
        order=data.batch_order,
        pool=setup.model.family.pool,
        share=held,
    )


def corpus_rows(config: Config, rules: Rules) -> int:
    """Rows of a step's batch in pretraining.

    Raises:
      UserError: they do not divide over devices and micro-batches.
    """
    train, multiple = config.train, config.train.grad_accum_steps * rules.num_batch_shards
    rows = train.batch_size if train.batch_tokens is None else max(1, train.batch_tokens // config.data.max_length)
    if train.batch_tokens is None and rows % multiple:
        raise UserError(
            f"train.batch_size={rows}: expected a multiple of {multiple}, the data-parallel devices times "
            "train.grad_accum_steps; or give train.batch_tokens, which is rounded"
        )
    return round_up(rows, multiple)


def make_evaluator(setup: Setup) -> Evaluator | CorpusEvaluator:
    """Returns what scores the splits of a run: `evaluate(params, split)`."""
    config = setup.config
    if config.task.kind == "classification":
        return Evaluator(setup.model, setup.task, config.data, setup.tokenizer.pad_id or 0)
    chunk = config.model.logits_chunk
    return CorpusEvaluator(
        setup.model, setup.task, config.data.max_length, config.data.eval_rows, None if chunk == "auto" else chunk
    )
