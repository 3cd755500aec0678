"""Exact evaluation: every row of a split is computed once, windows are averaged, metrics see the whole split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.config import DataConfig
from jaxlm.data.examples.example import Batch, Example
from jaxlm.data.examples.loader import eval_batches
from jaxlm.data.examples.shapes import eval_shapes
from jaxlm.errors import RunFailure
from jaxlm.models import Model
from jaxlm.parallel import processes
from jaxlm.parallel.placement import gather_rows, local_share, shard_batch
from jaxlm.tasks import Classification
from jaxlm.tasks.classification import Examples


class Evaluation(NamedTuple):
    """What became of a split."""

    scores: dict[str, float]
    predictions: Callable[[], list[dict[str, Any]]] | None = None
    """Makes the input rows with their predictions, in the order of the file; None for a corpus."""


@dataclass(frozen=True)
class Evaluator:
    """A model's compiled forward pass, laid out for the evaluation of labelled rows."""

    model: Model
    task: Classification
    data: DataConfig
    pad_id: int

    @cached_property
    def _step(self) -> Callable[..., jax.Array]:
        return jax.jit(make_eval_step(self.model.apply))

    def evaluate(self, params: Any, split: Examples) -> Evaluation:
        """Scores of a split's rows, and what was predicted for each."""
        outputs = self.outputs(params, split.examples, len(split.table.rows))
        return Evaluation(score(self.task, outputs, split), lambda: prediction_rows(self.task, outputs, split))

    def outputs(self, params: Any, examples: Sequence[Example], num_rows: int) -> np.ndarray:
        """Computes the outputs of each row of a split.

        Args:
          num_rows: rows of the split's table; those without an example stay NaN.
        Returns:
          float32 [num_rows, C] in the order of the table; of a windowed row, the mean over its windows.
        """
        totals = np.zeros((num_rows, self.model.num_outputs))
        weights = np.zeros((num_rows, 1))
        pending: list[tuple[jax.Array, Batch]] = []
        for batch in self._batches(examples):
            outputs = self._step(params, shard_batch(batch, self.model.compute.rules))
            pending.append((outputs, batch))
            if len(pending) > 2:  # the device computes ahead of the host, but not without bound
                self._collect(*pending.pop(0), totals, weights)
        for outputs, batch in pending:
            self._collect(outputs, batch, totals, weights)
        with np.errstate(invalid="ignore"):
            return (totals / weights).astype(np.float32)

    def _batches(self, examples: Sequence[Example]) -> Iterator[Batch]:
        multiple = self.model.compute.rules.num_batch_shards
        shapes = eval_shapes(
            [len(example.ids) for example in examples],
            max_length=self.data.max_length,
            row_length=self.data.row_length,
            row_multiple=multiple,
            packing=self.data.packing,
            eval_rows=self.data.eval_rows,
        )
        return eval_batches(
            examples,
            num_rows=shapes.row_counts[0],
            row_length=shapes.row_length,
            slots=shapes.slots,
            pad_id=self.pad_id,
            packing=self.data.packing,
            pool=self.model.family.pool,
            row_multiple=multiple,
            share=local_share(self.model.compute.rules),
            max_shapes=self.data.max_shapes,
        )

    def _collect(self, outputs: jax.Array, batch: Batch, totals: np.ndarray, weights: np.ndarray) -> None:
        rules = self.model.compute.rules
        values = processes.to_host(outputs)
        rows, weight = (gather_rows(batch[name], rules) for name in ("examples", "weights"))
        used = rows >= 0
        if not np.isfinite(values[used]).all():
            raise RunFailure("evaluation: the model's outputs are not finite; the parameters have diverged")
        np.add.at(totals, rows[used], values[used].astype(np.float64) * weight[used][:, None])
        np.add.at(weights, rows[used], weight[used][:, None])


def score(task: Classification, outputs: np.ndarray, split: Examples) -> dict[str, float]:
    """Metrics and mean loss of a split's rows, from their outputs [num_rows, C]."""
    labels = {example.index: example.label for example in split.examples}
    rows = np.fromiter(labels, int)
    targets = np.stack(list(labels.values()))
    labelled = {"labels": jnp.asarray(targets), "weights": jnp.ones(len(rows), jnp.float32)}
    total, weight = task.loss()(jnp.asarray(outputs[rows]), labelled)
    return {"loss": float(total) / float(weight), **task.metrics(outputs[rows], targets)}


def prediction_rows(task: Classification, outputs: np.ndarray, split: Examples) -> list[dict[str, Any]]:
    """The input rows, each with its prediction, in the order of the file."""
    rows = sorted({example.index for example in split.examples})
    predictions = task.predictions(outputs[rows])
    return [{**split.table.rows[row], "prediction": made} for row, made in zip(rows, predictions, strict=True)]


Apply = Callable[..., Any]


def make_eval_step(apply: Apply, measure: Callable[[Any, Batch], Any] | None = None) -> Callable[[Any, Batch], Any]:
    """Returns (params, batch) -> the outputs without dropout, or what `measure` makes of them; to be jitted."""
    if measure is None:
        return lambda params, batch: apply(params, batch, None)
    return lambda params, batch: measure(apply(params, batch, None), batch)
