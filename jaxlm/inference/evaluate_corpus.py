"""Exact evaluation on a corpus: every row is computed once, sums are added up over the whole split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxlm.data.corpus.dataset import CorpusSplit
from jaxlm.data.corpus.loader import corpus_eval_batches
from jaxlm.data.examples.shapes import round_up
from jaxlm.errors import RunFailure
from jaxlm.inference.evaluator import Evaluation, make_eval_step
from jaxlm.models import Model
from jaxlm.parallel.placement import local_share, shard_batch

EVAL_TOKENS = 4096


@dataclass(frozen=True)
class CorpusEvaluator:
    """A model's compiled forward pass and the sums that its objective asks for.

    Args:
      rows: rows of a batch; None: as many as give about `EVAL_TOKENS` tokens.
      chunk: columns whose logits exist at once; None: chosen by their number.
    """

    model: Model
    task: Any
    length: int
    rows: int | None = None
    chunk: int | None = None

    @cached_property
    def _step(self) -> Callable[..., dict[str, jax.Array]]:
        return jax.jit(make_eval_step(self.model.apply, lambda out, batch: self.task.measure(out, batch, self.chunk)))

    def evaluate(self, params: Any, split: CorpusSplit) -> Evaluation:
        """Scores of a split, the same on every process.

        Raises:
          RunFailure: a sum is not finite.
        """
        rules = self.model.compute.rules
        rows = round_up(self.rows or max(1, EVAL_TOKENS // self.length), rules.num_batch_shards)
        batches = corpus_eval_batches(split.plans, self.task.row, rows, share=local_share(rules))
        totals: dict[str, float] = {}
        pending: list[dict[str, jax.Array]] = []
        for batch in batches:
            pending.append(self._step(params, shard_batch(batch, rules)))
            if len(pending) > 2:  # the device computes ahead of the host, but not without bound
                _add(totals, pending.pop(0))
        for sums in pending:
            _add(totals, sums)
        if not all(np.isfinite(value) for value in totals.values()):
            raise RunFailure("evaluation: the loss is not finite; the parameters have diverged")
        return Evaluation(self.task.metrics(totals, [plan.corpus for plan in split.plans]))


def _add(totals: dict[str, float], sums: dict[str, jax.Array]) -> None:
    for name, value in jax.device_get(sums).items():
        totals[name] = totals.get(name, 0.0) + float(value)
