"""Says where each parameter stands in its network: embeddings, a layer of a stack, behind the layers, the head.

What treats parameters by their height (freezing, learning rates by layer, new top layers) reads it here, so that no
family says it a second time.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from jaxlm.errors import UserError
from jaxlm.models.base import Model, flatten

_AFTER_LAYERS = ("final_norm", "bridge", "combine", "query", "key", "energy")
"""Beginnings of the names of trunk parameters that stand behind a stack: its last norm, attention to an encoder."""


class Place(NamedTuple):
    """Where a parameter stands."""

    part: Literal["embeddings", "layers", "output", "head"]
    """`embeddings`: tables and what is done to them before the first layer; `output`: of the trunk, behind the layers.
    """
    stack: str
    """"" where a trunk is one stack, else encoder, decoder or generator."""
    first: int = 0
    """`layers`: number of the layer whose values come first along its leading axis; layer 0 reads the embeddings."""
    count: int = 0
    """`layers`: of how many layers it holds values."""


def places(model: Model) -> dict[str, Place]:
    """Returns the place of every parameter, by its name ("trunk/stack/layers/q")."""
    axes, shapes = flatten(model.axes), flatten(model.shapes)
    stacked = {name: shapes[name].shape[0] for name in axes if axes[name][0] == "layers"}
    sizes: dict[str, int] = {}
    for stack in {_stack(name) for name in stacked}:
        groups = [[n for name, n in stacked.items() if _stack(name) == stack and _is_first(name) is first]
                  for first in (True, False)]  # fmt: skip
        sizes[stack] = sum(max(group, default=0) for group in groups)
    found: dict[str, Place] = {}
    for name in axes:
        stack = _stack(name)
        if name in stacked:
            first = 0 if _is_first(name) else sizes[stack] - stacked[name]  # a norm may be missing in the lowest layer
            found[name] = Place("layers", stack, first, stacked[name])
        elif name.removeprefix("generator/").startswith("head/"):
            found[name] = Place("head", stack)
        elif name.rpartition("/")[2].startswith(_AFTER_LAYERS):
            found[name] = Place("output", stack)
        else:
            found[name] = Place("embeddings", stack)
    return found


def stack_sizes(found: dict[str, Place]) -> dict[str, int]:
    """Returns how many layers each stack has."""
    sizes: dict[str, int] = {}
    for place in found.values():
        if place.part == "layers":
            sizes[place.stack] = max(sizes.get(place.stack, 0), place.first + place.count)
    return sizes


def check_own_layers(model: Model, found: dict[str, Place], key: str) -> None:
    """Checks that each layer has parameters of its own.

    Args:
      key: of the config, for the message.
    Raises:
      UserError: layers share them, as ALBERT's.
    """
    sizes = stack_sizes(found)
    layers = getattr(model.config, "num_layers", None)
    held = sizes.get("", sizes.get("encoder"))
    if layers is not None and held is not None and held != layers:
        raise UserError(
            f"{key}: the {layers} layers of {model.family.name} share the parameters of {held}, and have no others of "
            "their own; leave it out"
        )


def heights(model: Model, key: str) -> dict[str, int | tuple[int, ...]]:
    """Returns how many layers lie between each parameter and the output, by name; of stacked layers, one number each.

    The head and what follows the layers: 0. Of a stack of n layers, layer i: n - i, in an encoder and in a decoder
    alike. The embeddings: one more than the lowest layer of the deepest stack.

    Args:
      key: of the config, for the message.
    Raises:
      UserError: layers share their parameters.
    """
    found = places(model)
    check_own_layers(model, found, key)
    sizes = stack_sizes(found)
    made: dict[str, int | tuple[int, ...]] = {}
    for name, place in found.items():
        if place.part == "layers":
            size = sizes[place.stack]
            made[name] = tuple(size - layer for layer in range(place.first, place.first + place.count))
        else:
            made[name] = 1 + max(sizes.values(), default=0) if place.part == "embeddings" else 0
    return made


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """{"trunk/layers/q": leaf} -> nested dicts: the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def _stack(name: str) -> str:
    parts = name.split("/")
    if parts[0] == "generator":
        return "generator"
    part = parts[1] if len(parts) > 1 else ""
    return next((stack for stack in ("encoder", "decoder") if part == stack or part.startswith(f"{stack}_")), "")


def _is_first(name: str) -> bool:
    """Whether a parameter is of a first layer that stands apart from the others, as in recurrent families."""
    return any(part == "first" or part.endswith("_first") for part in name.split("/")[:-1])
