"""config.json to a family's config and back: names, defaults, and the check that a value can be what it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from jaxlm.errors import UserError
from jaxlm.nn.layers import ACTIVATIONS

_LARGEST = {"num_layers": 10_000, "num_decoder_layers": 10_000, "vocab_size": 2**27, "max_positions": 2**31 - 1}
_LARGEST_SIZE = 2**24
"""Above these no model is meant; a size is refused before anything is made of it."""
_SMALLEST = {"num_types": 0}
_POSITIVE = ("rope_theta", "rope_factor")


def read_hf(
    kind: type, config: Mapping[str, Any], fields: Mapping[str, str], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Translates an HF config.json by a {our field: HF key} map.

    Args:
      kind: the family's config class, whose annotations say what a value has to be.
      defaults: by HF key, what an absent key or null means.
    Raises:
      UserError: a key without a value or a default, a value of another type, or a size that no model has.
    """
    values = {}
    for ours, theirs in fields.items():
        value = config.get(theirs)
        if value is None and theirs not in defaults:
            raise UserError(f"config.json: expected the key {theirs!r}, which is absent")
        if value is None:
            value = defaults[theirs]
        values[ours] = None if value is None else check_value(kind, ours, theirs, value)
    _check_ids(kind, values, fields)
    return values


def write_hf(config: Any, fields: Mapping[str, str]) -> dict[str, Any]:
    """The inverse of `read_hf`."""
    return {theirs: getattr(config, ours) for ours, theirs in fields.items()}


def check_value(kind: type, ours: str, theirs: str, value: Any) -> Any:
    """Returns the value of a config field as its type has it: numbers of a float as a float, a list as a tuple.

    Args:
      ours: the field of `kind`.
      theirs: HF's name of it, for the message.
    Raises:
      UserError: another type, a number that is not finite, or one out of range.
    """
    types = _types(kind)[ours]
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, bool) and bool in types or isinstance(value, str) and str in types:
        return value
    if is_int and int in types:
        return _in_range(ours, theirs, value, optional=type(None) in types)
    if float in types and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(ours, theirs, value)
    if isinstance(value, (list, tuple)) and tuple in types:
        return tuple(_in_range(ours, theirs, item, optional=False) for item in value)
    names = [t.__name__ for t in types if t is not type(None)]
    raise UserError(f"config.json: {theirs}: expected {_SPOKEN.get(names[0], names[0])}, found {_shown(value)}")


_SPOKEN = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word", "tuple": "a list"}


@cache
def _types(kind: type) -> dict[str, tuple[Any, ...]]:
    """The types that each field of a config may have, without their parameters."""
    hints = get_type_hints(kind)
    return {name: tuple(get_origin(t) or t for t in (get_args(h) or (h,))) for name, h in hints.items()}


def _in_range(ours: str, theirs: str, value: Any, *, optional: bool) -> Any:
    """A size that a model can have, or a token id; -1 for an id means none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"config.json: {theirs}: expected whole numbers, found {_shown(value)}")
    if ours.endswith("_id"):
        if value == -1 and optional:
            return None
        smallest, largest = 0, 2**31 - 1
    else:
        smallest, largest = _SMALLEST.get(ours, 1), _LARGEST.get(ours, _LARGEST_SIZE)
    if not smallest <= value <= largest:
        raise UserError(f"config.json: {theirs}={_shown(value)}: expected {smallest} to {largest}")
    return value


def _number(ours: str, theirs: str, value: int | float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    highest = 1.0 if ours.endswith("dropout") else math.inf
    good = math.isfinite(number) and (number > 0 if ours in _POSITIVE else 0 <= number < highest)
    if not good:
        meant = "a number above 0" if ours in _POSITIVE else "0 or more" + (", below 1" if highest == 1 else "")
        raise UserError(f"config.json: {theirs}={_shown(value)}: expected {meant}")
    return number


def _check_ids(kind: type, values: Mapping[str, Any], fields: Mapping[str, str]) -> None:
    """Ids that every batch has in it lie in the vocabulary."""
    for ours in ("pad_id", "decoder_start_id"):
        if ours in values and "vocab_size" in values and type(None) not in _types(kind)[ours]:
            if values[ours] >= values["vocab_size"]:
                raise UserError(
                    f"config.json: {fields[ours]}={values[ours]} is not in the vocabulary of {values['vocab_size']}"
                )


def check_activation(name: Any, key: str) -> None:
    """Raises UserError for an activation that is not known."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"config.json: {key}={_shown(name)} is not supported; expected one of {known}")


def check_encoder(config: Mapping[str, Any], activation_key: str = "hidden_act") -> None:
    """Refuses variants of an encoder that would load without an error and compute something else.

    Raises:
      UserError: decoder or cross-attention checkpoints, relative positions, an unknown activation.
    """
    for key in ("is_decoder", "add_cross_attention"):
        if config.get(key):
            raise UserError(f"config.json: {key}=true is not supported; expected an encoder")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"config.json: position_embedding_type={config['position_embedding_type']!r} is not supported; "
            "expected 'absolute'"
        )
    check_activation(config.get(activation_key, "gelu"), activation_key)


def _shown(value: Any) -> str:
    """The value, cut to a line."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
