"""What a dry run shows of a batch: the examples of its first row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxlm.fields import EXAMPLES, Batch


def show_first_row(batch: Batch, noun: str, describe: Callable[[int, np.ndarray], str]) -> list[str]:
    """Returns lines for `Task.show`: one for each example of the first row, and one for its padding.

    Args:
      noun: what an example is called.
      describe: (slot, bool [T], the columns of its example) -> what is said of it, after its number and length.
    """
    segments = batch["segment_ids"][0]
    lines = ["first packed row:"]
    for slot, example in enumerate(batch[EXAMPLES][0]):
        if example >= 0:
            inside = segments == slot + 1
            said = describe(slot, inside)
            lines.append(f"  {slot + 1:3d}  {noun} {example + 1}, {int(inside.sum())} tokens{said}")
    return [*lines, f"       {int((segments == 0).sum())} tokens of padding"]
