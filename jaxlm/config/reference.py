"""The config schema in words: the type of a key for error messages, and the reference in docs/config.md."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jaxlm.config.schema import Config

_SCALARS = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Any: "anything"}
_PLURALS = {"text": "texts", "integer": "integers", "number": "numbers", "mapping": "mappings", "section": "sections"}


def describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Returns a type in words, for instance `number >= 0 and < 1 or null`.

    Args:
      annotation: a type as it stands in the schema.
      metadata: the bounds beside it (`annotated_types`); in a union they belong to the number.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [m for extra in args[1:] for m in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return describe(args[0], bounds)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(arg, metadata) for arg in args))
    if origin is Literal:
        return str(args[0]) if len(args) == 1 else "one of " + ", ".join(map(str, args))
    if origin is tuple:
        count, item = ("", args[0]) if args[-1] is Ellipsis else (f"{len(args)} ", args[0])
        words = describe(item)
        return f"list of {count}{_PLURALS.get(words, words)}"
    if origin is dict:
        return "mapping" if args[1] is Any else f"mapping of {describe(args[0])} to {describe(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _SCALARS[annotation] + (_bounds(metadata) if annotation in (int, float) else "")


def _bounds(metadata: Sequence[Any]) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    parts = [f"{sign} {_number(getattr(m, k))}" for m in metadata for k, sign in signs.items() if hasattr(m, k)]
    return " " + " and ".join(parts) if parts else ""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def sections_of(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Returns the model classes of a section's annotation: several where a key decides which, none for a plain value.

    A list of sections is a value: its items are not keys of their own.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    if get_origin(annotation) not in (Annotated, Union, types.UnionType):
        return ()
    found = (section for part in get_args(annotation) for section in sections_of(part))
    return tuple(dict.fromkeys(found))


def walk(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields every key of the schema, dotted, sections before what they hold; a key of several kinds once for each."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for section in sections_of(field.annotation):
            yield from walk(section, f"{prefix}{name}.")


def schema_reference() -> str:
    """Returns the Markdown reference of all config keys; a section that stands in several places is described once."""
    places: dict[type[BaseModel], list[str]] = {Config: []}
    for key, field in walk():
        sections = sections_of(field.annotation)
        for section in sections:
            kind = section.model_fields.get("kind") if len(sections) > 1 else None
            key_and_kind = key if kind is None else f"{key}: {{kind: {kind.default}}}"
            if key_and_kind not in (listed := places.setdefault(section, [])):
                listed.append(key_and_kind)
    parts = [
        "# Config keys\n\n"
        "Generated from the sections of `jaxlm.config.schema` by `python -m jaxlm.config.reference > docs/config.md`.\n"
        "A config is YAML; on the command line `key.path=value` overrides a key, for instance `train.epochs=1` or\n"
        "`data.train.path=my.tsv`.\n"
    ]
    for section, keys in places.items():
        title = ", ".join(f"`{key}`" for key in keys) or "Top level"
        rows = [
            f"| `{name}` | {describe(field.annotation, field.metadata)} | {_default(field)} | {_one_line(field)} |"
            for name, field in section.model_fields.items()
        ]
        table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
        parts.append(f"## {title}\n\n{section.__doc__}\n\n{table}\n")
    return "\n".join(parts)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


def _one_line(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(schema_reference(), end="")
