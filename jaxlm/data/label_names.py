"""The label names of a config.json in Hugging Face's format, however it spells them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from jaxlm.errors import UserError

_MOST = 1_000_000


def hf_label_names(hf_config: Mapping[str, Any], *, placeholders: bool = False) -> tuple[str, ...] | None:
    """Returns the label names of a config.json in id order; None where it has none.

    `id2label` may be an object of ids, a list, or an object the other way round (name -> id); a name may be a number.
    Without it there are `num_labels` labels, or two, as Transformers takes it.

    Args:
      placeholders: return LABEL_0, LABEL_1, ..., which Transformers writes where nobody named the labels, too.
    Raises:
      UserError: ids that are not 0, 1, ..., names that repeat or are none, a regression of several outputs.
    """
    named, number = hf_config.get("id2label"), hf_config.get("num_labels")
    if number is not None and (type(number) is not int or not 0 <= number <= _MOST):
        raise UserError(f"config.json: num_labels: expected a whole number, found {number!r:.60}")
    names = _names(named) if named else tuple(f"LABEL_{i}" for i in range(2 if number is None else number))
    if hf_config.get("problem_type") == "regression" and len(names) > 1:
        raise UserError(
            f"config.json: problem_type=regression with {len(names)} outputs is not supported; expected one (set "
            "model.new_head=true to train a new head)"
        )
    return None if not placeholders and names == tuple(f"LABEL_{i}" for i in range(len(names))) else names or None


def _names(id2label: Any) -> tuple[str, ...]:
    if isinstance(id2label, list):
        by_id = dict(enumerate(id2label))
    elif not isinstance(id2label, Mapping):
        raise UserError(f"config.json: id2label: expected an object of ids and names, found {id2label!r:.60}")
    elif all(_is_id(key) for key in id2label):
        by_id = {int(key): name for key, name in id2label.items()}
    elif all(type(value) is int for value in id2label.values()):
        by_id = {i: name for name, i in id2label.items()}
    else:
        raise UserError(f"config.json: id2label: expected ids as keys, found {', '.join(map(str, id2label))[:60]}")
    if sorted(by_id) != list(range(len(id2label))):
        raise UserError(
            f"config.json: id2label: expected the ids 0 to {len(id2label) - 1}, each once; found "
            f"{', '.join(map(str, sorted(by_id)))[:60]}"
        )
    names = [by_id[i] for i in range(len(by_id))]
    for i, name in enumerate(names):
        if not isinstance(name, (str, int, float)) or isinstance(name, bool) or name == "":
            raise UserError(f"config.json: id2label: expected a name for label {i}, found {name!r:.60}")
    spelled = tuple(map(str, names))
    check_distinct(spelled, "config.json: id2label")
    return spelled


def check_distinct(names: tuple[str, ...], where: str) -> None:
    """Raises UserError where two labels have one name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{where}: the name {twice[0]!r} stands for more than one label; give each a name of its own")


def _is_id(key: Any) -> bool:
    return isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10
