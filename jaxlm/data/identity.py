"""What a loader's saved state belongs to: compared on resuming, with a message that names what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from jaxlm.errors import UserError

_CONTENT = {
    "examples": "the tokenized training examples differ (data files, data.clean, data.max_length, tokenizer or labels)",
    "corpora": "the tokenised training corpus differs (data files, data.clean, tokenizer)",
}


def fingerprint(identity: dict[str, Any]) -> str:
    """Hex SHA-256 of an identity: `settings` by name, a digest of the `order`, and one of the content."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def check_state(state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuse a state that another loader saved.

    Raises:
        UserError: names what differs.
    """
    if state["fingerprint"] != fingerprint(identity):
        raise UserError(
            "the saved run read its training batches differently, so it cannot be continued exactly: "
            + "; ".join(_differences(state["identity"], identity))
            + ". Restore what was changed, or start over with train.fresh=true"
        )


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What tells two identities apart, in words."""
    for content, words in _CONTENT.items():
        if saved.get(content) != now.get(content):
            yield words
    for key in sorted(saved["settings"].keys() | now["settings"].keys()):
        old, new = (identity["settings"].get(key, "unset") for identity in (saved, now))
        if old != new:
            yield f"{key} was {old} and is now {new}"
    if saved["order"] != now["order"] and saved["settings"]["seed"] == now["settings"]["seed"]:
        yield "the shuffled order differs (the number of examples, or the version of NumPy)"
