"""The one evaluator: computes every example of a split once, reads outputs as they come, and scores at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.data.dataset import BatchLayout, Dataset
from jaxlm.data.examples.example import Example, Examples
from jaxlm.errors import RunFailure
from jaxlm.fields import EXAMPLES, Batch
from jaxlm.inference.generate import generate
from jaxlm.models import Model
from jaxlm.objectives import Apply
from jaxlm.parallel import processes
from jaxlm.parallel.placement import device_arrays, gather_rows, shard_batch
from jaxlm.tasks.base import Task
from jaxlm.tasks.records import Answer, Generation, Outputs

IN_FLIGHT = 2
"""Batches that the device may be ahead of the host: enough to hide the loader, few enough to hold."""
GENERATED = 256
"""Prompts that are continued before their answers are read."""


class Evaluation(NamedTuple):
    """Scores and answers of one split."""

    scores: dict[str, float]
    answers: tuple[Answer, ...]
    """In the order of the table, without rows that have no example; empty for a corpus."""
    sums: dict[str, float]
    """`Outputs.sums` of the whole split."""


@dataclass(frozen=True)
class Evaluator:
    """A model's compiled evaluation step, and how a split's batches are laid out.

    Of a split it holds the sums, the answers, what `Task.decode` kept of rows some of whose examples are still missing,
    and the outputs of three batches.

    Attributes:
      apply: (params, frozen, batch, None) -> the outputs without dropout.
      merge: (params, frozen) -> the model's parameters, for what it writes.
    """

    model: Model
    task: Task
    layout: BatchLayout
    apply: Apply
    merge: Callable[[Any, Any], Any]

    @cached_property
    def _step(self) -> Callable[[Any, Any, Mapping[str, jax.Array]], Outputs]:
        return jax.jit(make_eval_step(self.apply, self.task.measure))

    def evaluate(self, params: Any, frozen: Any, dataset: Dataset, written: int | None = None) -> Evaluation:
        """Scores a split; the same on every process.

        Args:
          params, frozen: as `apply` takes them.
          written: of a task that writes, how many rows are written and answered, the first; None: all.
        Raises:
          RunFailure: an output is not finite.
        """
        sums: dict[str, float] = {}
        found = self.answers(params, frozen, dataset, sums, written)
        answers = tuple(answer for _, answer in sorted(found, key=_row_number))
        return Evaluation(self.task.scores(sums, answers, dataset), answers, sums)

    def answers(
        self,
        params: Any,
        frozen: Any,
        dataset: Dataset,
        sums: dict[str, float] | None = None,
        written: int | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Yields (row of the table, answer) as rows are complete.

        Args:
          sums: `Outputs.sums` are added up here, of all rows; None: they are not asked for.
          written: as in `evaluate`.
        """
        examples = dataset.examples()
        generation = self.task.generation
        if examples is not None and generation is not None:
            if sums is not None:
                for _ in self._outputs(params, frozen, dataset, sums):
                    pass
            if written is not None:
                examples = replace(examples, examples=examples.examples[:written])
            yield from self._assemble(examples, self._generated(self.merge(params, frozen), examples, generation))
            return
        outputs = self._outputs(params, frozen, dataset, {} if sums is None else sums)
        if examples is not None:
            yield from self._assemble(examples, outputs)
            return
        for _ in outputs:
            pass

    def _assemble(
        self, split: Examples, outputs: Iterator[tuple[int, Mapping[str, Any]]]
    ) -> Iterator[tuple[int, Answer]]:
        """Collects the examples of each row, and answers it when the last has come."""
        missing = np.bincount([example.row for example in split.examples], minlength=len(split.table.rows))
        open_rows: dict[int, list[tuple[int, Any]]] = {}
        for index, values in outputs:
            example = split.examples[index]
            parts = open_rows.setdefault(example.row, [])
            parts.append((index, self.task.decode(example, values)))
            missing[example.row] -= 1
            if missing[example.row] == 0:
                row = split.table.rows[example.row]
                in_order = [(split.examples[i], part) for i, part in sorted(open_rows.pop(example.row), key=_index)]
                yield example.row, Answer(row, split.labels[example.row], self.task.answer(row, in_order))

    def _outputs(
        self, params: Any, frozen: Any, dataset: Dataset, sums: dict[str, float]
    ) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
        """Yields (example, its outputs) batch by batch."""
        rules = self.model.compute.rules
        pending: deque[tuple[Outputs, Batch]] = deque()
        for batch in dataset.batches(self.layout):
            arrays = shard_batch(device_arrays(batch), rules, self.task.fields)
            pending.append((self._step(params, frozen, arrays), batch))
            if len(pending) > IN_FLIGHT:
                yield from self._read(*pending.popleft(), sums)
        while pending:
            yield from self._read(*pending.popleft(), sums)
        if not all(np.isfinite(value) for value in sums.values()):
            raise RunFailure("evaluation: the loss is not finite; the parameters have diverged")

    def _read(
        self, outputs: Outputs, batch: Batch, sums: dict[str, float]
    ) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
        """Yields what a batch's examples put out, and adds its sums up."""
        for name, value in jax.device_get(dict(outputs.sums)).items():
            sums[name] = sums.get(name, 0.0) + float(value)
        if not outputs.slots and not outputs.tokens:
            return
        rules = self.model.compute.rules
        examples = gather_rows(batch[EXAMPLES], rules)
        slots = {name: processes.to_host(value) for name, value in outputs.slots.items()}
        tokens = {name: processes.to_host(value) for name, value in outputs.tokens.items()}
        segment_ids = gather_rows(batch["segment_ids"], rules) if tokens else None
        for row, slot in zip(*np.nonzero(examples >= 0), strict=True):
            values = {name: value[row, slot] for name, value in slots.items()}
            if segment_ids is not None:
                inside = segment_ids[row] == slot + 1
                values |= {name: value[row, inside] for name, value in tokens.items()}
            for value in values.values():
                if value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise RunFailure("evaluation: the model's outputs are not finite; the parameters have diverged")
            yield int(examples[row, slot]), values

    def _generated(
        self, params: Any, split: Examples, generation: Generation
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yields (example, what the model writes after its prompt), some prompts at a time.

        Args:
          params: the model's.
        """
        for start in range(0, len(split.examples), GENERATED):
            part = split.examples[start : start + GENERATED]
            read = [example.tokens.tolist() for example in part] if self.model.family.is_encoder_decoder else None
            written = generate(
                self.model, params, [_prompt(example) for example in part], generation,
                encoder_inputs=read, pad_id=self.layout.pad_id, numbers=[split.table.number(e.row) - 1 for e in part],
            )  # fmt: skip
            for offset, texts in enumerate(written):
                several = {"hypotheses": texts} if len(texts) > 1 else {}
                yield start + offset, {"generated": np.asarray(texts[0].tokens, np.int32), **several}


def make_eval_step(
    apply: Apply, measure: Callable[[Any, Mapping[str, jax.Array]], Outputs]
) -> Callable[[Any, Any, Mapping[str, jax.Array]], Outputs]:
    """Returns (params, frozen, batch) -> what `measure` makes of the outputs without dropout; to be jitted."""
    return lambda params, frozen, batch: measure(apply(params, frozen, batch, None), batch)


def _row_number(item: tuple[int, Answer]) -> int:
    return item[0]


def _index(item: tuple[int, Any]) -> int:
    return item[0]


def _prompt(example: Example) -> list[int]:
    assert example.prompt is not None
    return example.prompt.tolist()
