"""Batches that resume exactly: a loader's state, and what it belongs to, with a message that names what differs."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain

from jaxlm.errors import UserError
from jaxlm.fields import Batch

_CONTENT = {
    "examples": "the tokenized training examples differ (data files, data.clean, data.max_length, tokenizer or labels)",
    "corpora": "the tokenized training corpus differs (data files, data.clean, tokenizer)",
}


class ResumableBatches:
    """Endless batches of this process's rows (layout: docs/design.md), with a state for checkpoints.

    Attributes:
      fingerprint: hex SHA-256 of the data and of every setting that decides the batches.
    """

    fingerprint: str

    def _begin(self, identity: dict[str, Any], iterator: Any) -> None:
        """Sets the identity and the Grain iterator that batches come from."""
        self._identity, self._iterator = identity, iterator
        self.fingerprint = fingerprint(identity)

    def __iter__(self) -> ResumableBatches:
        return self

    def __next__(self) -> Batch:
        """Returns the next batch."""
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Returns the position of the loader in JSON values, the same on every process."""
        return {"fingerprint": self.fingerprint, "identity": self._identity, "iterator": self._iterator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `get_state` was taken, bit for bit.

        Raises:
          UserError: the state belongs to other data or settings; names what differs.
        """
        check_state(state, self._identity)
        self._iterator.set_state(state["iterator"])

    def close(self) -> None:
        """Stops prefetching; the loader cannot be read afterwards."""
        self._iterator.close()


def batches_by_step(build: Callable[[int], Batch]) -> Any:
    """Returns a Grain iterator over build(0), build(1), ..., made ahead of use; its state is one number."""
    steps = grain.MapDataset.range(sys.maxsize).map(build)
    # One thread: a batch takes far less than a step, and the caches of orders need no lock.
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def fingerprint(identity: dict[str, Any]) -> str:
    """Returns the hex SHA-256 of an identity: `settings` by name, a digest of the `order`, and one of the content."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def check_state(state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuses a state that another loader saved.

    Raises:
      UserError: names what differs.
    """
    if state["fingerprint"] != fingerprint(identity):
        raise UserError(
            "the saved run read its training batches differently, so it cannot be continued exactly: "
            + "; ".join(_differences(state["identity"], identity))
            + ". Restore what was changed, or start over with train.restart=true"
        )


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yields the differences of two identities, in words."""
    for content, words in _CONTENT.items():
        if saved.get(content) != now.get(content):
            yield words
    for key in sorted(saved["settings"].keys() | now["settings"].keys()):
        old, new = (identity["settings"].get(key, "unset") for identity in (saved, now))
        if old != new:
            yield f"{key} was {old} and is now {new}"
    if saved["order"] != now["order"] and saved["settings"]["seed"] == now["settings"]["seed"]:
        yield "the shuffled order differs (the number of examples, or the version of NumPy)"
