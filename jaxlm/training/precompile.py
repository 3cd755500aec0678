"""Compiles the train step for the batch shapes that are still to come, while steps of the first shape run."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from jaxlm.fields import Batch
from jaxlm.parallel import processes
from jaxlm.training.plan import Plan

log = logging.getLogger("jaxlm")


class Precompiler:
    """A thread that compiles ahead; JAX then finds the program when a batch of its shape comes.

    Packed batches differ by their number of rows alone (`Shapes.row_counts`). Of several processes nothing is compiled
    ahead, since each knows only its own rows.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._thread = ThreadPoolExecutor(1, "compile ahead")
        self._programs: dict[int, Future[None]] = {}

    def __enter__(self) -> Precompiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def begin(self, batch: Batch) -> None:
        """Starts to compile for all shapes but that of `batch`, the first one, which has been compiled."""
        shapes, rows = self._plan.loader.shapes, batch["tokens"].shape[0]
        if self._programs or processes.is_multiprocess() or len(shapes.row_lengths) > 1:
            return
        for other in shapes.row_counts:
            if other != rows:
                self._programs[other] = self._thread.submit(self._compile, _with_rows(batch, other))

    def wait(self, batch: Batch) -> None:
        """Waits until the program for a batch is there, if it is being compiled."""
        program = self._programs.get(batch["tokens"].shape[0])
        if program is not None and not program.cancel():
            program.result()

    def _compile(self, batch: Batch) -> None:
        try:
            self._plan.step.lower(self._plan.abstract_state(), self._plan.abstract_batch(batch)).compile()
        except Exception as error:  # the step itself will meet it, and say what is wrong
            log.debug("compiling ahead failed: %s", error)


def _with_rows(batch: Batch, rows: int) -> Batch:
    """An empty batch of the same kind with another number of rows."""
    return {name: np.zeros((rows, *value.shape[1:]), value.dtype) for name, value in batch.items()}
