"""What every split of data gives: training batches and evaluation batches, whether of labelled rows or of a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from jaxlm.data.config import Sampling
from jaxlm.data.examples.example import Examples
from jaxlm.data.examples.shapes import Shapes
from jaxlm.fields import Batch
from jaxlm.parallel.share import Share


@dataclass(frozen=True)
class BatchLayout:
    """How a split becomes batches: settings of the config, facts of mesh and tokenizer; made in `setup/layout.py`.

    Attributes:
      batch_size: examples in a training step (rows of a corpus); None with `batch_tokens`.
      batch_tokens: instead, about how many tokens a training step reads.
      grad_accum_steps: micro-batches that a training batch is split into.
      max_length: longest example in tokens; the length of a corpus's rows.
      row_length: columns of a packed row; None: chosen from the data.
      packing: several examples to a row; False: one, padded.
      max_shapes: most distinct batch shapes.
      eval_rows: rows of an evaluation batch; None: as many as give about 4,096 tokens.
      few_shapes: sizes of evaluation batches are rounded up to powers of two, so that splits share compiled steps.
      order: order of the examples of an epoch (`data.batch_order`).
      sampling: rows of each class in an epoch (`data.sampling`).
      pad_id: token id of padding.
      seed: decides the order, and what a corpus's rows draw.
      share: the rows of an evaluation batch that this process builds; its `num_shards` are the mesh's.
    """

    batch_size: int | None = 32
    batch_tokens: int | None = None
    grad_accum_steps: int = 1
    max_length: int = 128
    row_length: int | None = None
    packing: bool = True
    max_shapes: int = 4
    eval_rows: int | None = None
    few_shapes: bool = False
    order: Literal["random", "balanced"] = "random"
    sampling: Sampling = "natural"
    pad_id: int = 0
    seed: int = 0
    share: Share = Share()

    @property
    def train_share(self) -> Share:
        """The rows of a training batch that this process builds."""
        return Share(self.share.shards, self.share.num_shards, self.grad_accum_steps)

    @property
    def train_multiple(self) -> int:
        """What the global number of rows of a training batch is a multiple of."""
        return self.share.num_shards * self.grad_accum_steps


@runtime_checkable
class Loader(Protocol):
    """Endless training batches of this process's rows, with the state of an exact resume."""

    @property
    def shapes(self) -> Shapes:
        """The (global) batch shapes."""
        ...

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of one pass over the data; None: there is no data, only its shapes."""
        ...

    @property
    def padding_share(self) -> float:
        """Padding columns over all columns."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the data and of every setting that decides the batches."""
        ...

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class Dataset(Protocol):
    """One split: labelled rows (`data.examples`), or a tokenized corpus (`data.corpus`)."""

    def describe(self) -> dict[str, int]:
        """Counts for summary.json."""
        ...

    def loader(self, layout: BatchLayout) -> Loader:
        """Training batches.

        Raises:
          UserError: settings that do not suit this kind of data, or rows that do not divide over the devices.
        """
        ...

    def batches(self, layout: BatchLayout) -> Iterator[Batch]:
        """Every example once, for evaluation."""
        ...

    def examples(self) -> Examples | None:
        """The examples that a batch's `examples` index; None for a corpus, whose rows are nobody's."""
        ...

    def fingerprint(self) -> str:
        """Text that is the same on every process that has read the same data."""
        ...
