"""YAML files and `key.path=value` overrides to and from the config schema, with errors that name file, line and key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from jaxlm.config.nodes import Dumper, Node, parse
from jaxlm.config.other_names import OTHER_KINDS, OTHER_NAMES
from jaxlm.config.reference import describe, sections_of, walk
from jaxlm.config.schema import Config, include_registered_tasks
from jaxlm.config.shipped import find_config
from jaxlm.errors import UserError, did_you_mean, nearest
from jaxlm.local_paths import missing


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config file.

    Args:
      path: a YAML file, or a shipped one (`shipped.find_config`).
      overrides: `key.path=value`, the value being YAML; applied in order. A path may lead into mappings and lists
        (`data.train.rows.0.text=...`); a section may be replaced whole (`data.train={path: x}`) or set to null.

    Raises:
      UserError: the file cannot be read or is no mapping, or a key or value does not fit; all mistakes in one message,
        each with file, line (or the override), key, what was expected and what was found.
    """
    include_registered_tasks()
    path = find_config(Path(path))
    mistakes: list[str] = []
    root = parse(_read(path), lambda line: f"{path}:{line}", mistakes)
    if root is None:
        raise UserError(f"{path}: the file is empty; expected a mapping with at least the key name")
    if isinstance(root.value, str) and ":" in root.value:
        raise UserError(f"{root.where}: expected a space after the colon of a key, found {_show(root.plain())}")
    if not isinstance(root.value, dict):
        raise UserError(f"{root.where}: expected a mapping of keys to values, found {_show(root.plain())}")
    return _resolve(root, overrides, mistakes)


def make_config(text: str, overrides: Sequence[str] = ()) -> Config:
    """Returns the config that a YAML text of no file describes; `overrides` and errors as in `load_config`."""
    include_registered_tasks()
    mistakes: list[str] = []
    root = parse(text, lambda _: "the config", mistakes)
    assert root is not None
    return _resolve(root, overrides, mistakes)


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """Returns a config with some keys changed; `overrides` and errors as in `load_config`."""
    mistakes: list[str] = []
    root = parse(dump_config(config), lambda _: config.name, mistakes)
    assert root is not None
    return _resolve(root, overrides, mistakes)


def _resolve(root: Node, overrides: Sequence[str], mistakes: list[str]) -> Config:
    for override in overrides:
        _apply(root, override, mistakes)
    config = _validate(root, mistakes)
    if config is None or mistakes:
        raise UserError("\n".join(mistakes))
    return config


def dump_config(config: Config) -> str:
    """Returns YAML that `load_config` reads back as an equal config."""
    return yaml.dump(config.model_dump(), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def _read(path: Path) -> str:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file{missing(Path(path))}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: expected a YAML file, found a folder{_configs_in(Path(path))}") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from e
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        found = f"byte 0x{content[e.start]:02x} at offset {e.start}"
        raise UserError(f"{path}:{line}: expected UTF-8, found {found}") from None


def _configs_in(folder: Path) -> str:
    names = sorted(path.name for pattern in ("*.yaml", "*.yml") for path in folder.glob(pattern))
    return f"; it holds {', '.join(names[:8])}" if names else ""


def _apply(root: Node, override: str, mistakes: list[str]) -> None:
    """Sets one `key.path=value` in the document."""
    place = f"override '{override}'"
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        mistakes.append(f"{place}: expected key.path=value")
        return
    if (mark := _mark(text)) is not None:
        text = json.dumps(mark)
    try:
        value = parse(text, lambda _: place, mistakes) or Node(None, place)
    except UserError as e:
        mistakes.append(f"{e} (quote the value?)")
        return
    unspaced = isinstance(value.value, dict) and any(":" in key and of.value is None for key, of in value.value.items())
    if unspaced and not {'"', "'"} & set(text):
        mistakes.append(f"{place}: in braces a space stands behind each colon: {{path: x}}")
        return
    node = root
    for depth, key in enumerate(keys):
        if node.value is None:
            node.value = {}
        child = node.child(key)
        last = depth == len(keys) - 1
        if child is None and not isinstance(node.value, dict):
            kind = f"a list of {len(node.value)}" if isinstance(node.value, list) else _show(node.value)
            mistakes.append(f"{place}: there is no {key} in {'.'.join(keys[:depth])}, which is {kind}")
            return
        node.touched.append(place)
        if last or child is None:
            child = value if last else Node({}, place)
            node.value[key if isinstance(node.value, dict) else int(key)] = child
        node = child


def _mark(text: str) -> str | None:
    """The character that a value is, if it is a mark such as `|`, `,` or `\\t`, which YAML would take for its own."""
    if text == "\\t":
        return "\t"
    return text if len(text) == 1 and not text.isalnum() and not text.isspace() and text != "~" else None


def _validate(root: Node, mistakes: list[str]) -> Config | None:
    """Returns the config, or None with the schema's complaints appended to `mistakes`."""
    try:
        return Config.model_validate_json(json.dumps(root.plain()), strict=True)
    except ValidationError as e:
        errors = [(_follow(root, error["loc"]), error) for error in e.errors(include_url=False)]
    # A label, column or name may look like a number, a count like a float: `labels: [0, 1]`, `steps: 1e4`.
    if sum(_retype(path[-1], error["type"]) for (_, path), error in errors):
        return _validate(root, mistakes)
    seen: set[tuple[str, ...]] = set()
    for (keys, path), error in errors:
        if keys in seen and error["type"] != "value_error":  # a union complains once for each of its members
            continue
        seen.add(keys)
        places = [path[-1].where, *(path[-1].touched if error["type"] == "value_error" else [])]
        mistakes.append(f"{' with '.join(dict.fromkeys(places))}: {_explain(keys, path[-1], error)}")
    return None


def _follow(root: Node, location: Sequence[str | int]) -> tuple[tuple[str, ...], list[Node]]:
    """Returns the keys and nodes that a pydantic location leads through, leaving out its names of union members."""
    keys: list[str] = []
    path = [root]
    for part in location:
        child = path[-1].child(part)
        if child is not None:
            keys.append(str(part))
            path.append(child)
    return tuple(keys), path


def _retype(node: Node, error_type: str) -> bool:
    """Where the schema wants it, takes a plain scalar as the text that was written, or a whole float as an integer."""
    if error_type == "string_type" and node.raw is not None and isinstance(node.value, (bool, int, float)):
        node.value = node.raw
        return True
    if error_type == "int_type" and isinstance(node.value, float) and node.value.is_integer():
        node.value = int(node.value)
        return True
    return False


def _explain(keys: tuple[str, ...], node: Node, error: Any) -> str:
    dotted = ".".join(keys)
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {dotted}; {_hint(keys, error['loc'])}"
        case "union_tag_invalid":
            known, found = error["ctx"]["expected_tags"].replace("'", ""), error["ctx"]["tag"]
            ours = OTHER_KINDS.get(str(found).lower().replace("-", "_"))
            hint = did_you_mean(found, known.split(", ")) if ours is None else f"; did you mean {ours!r}?"
            return f"{dotted}.kind: expected one of {known}, found {_show(found)}{hint}"
        case "missing":
            keys = (*keys, str(error["loc"][-1]))
            return f"{'.'.join(keys)} is missing; expected {_expected(keys, error['loc'])}"
        case "value_error":
            return f"{dotted}: {error['ctx']['error']}"
        case "string_pattern_mismatch":
            info = _field(keys, error["loc"])
            rule = info.description.rpartition(": ")[2].rstrip(".") if info and info.description else ""
            return f"{dotted}: expected {rule or error['ctx']['pattern']}; found {_show(node.plain())}"
    return f"{dotted}: expected {_expected(keys, error['loc'])}, found {_show(node.plain())}"


def _field(keys: tuple[str, ...], location: Sequence[str | int]) -> FieldInfo | None:
    """The schema's field of a key, None for one that it lacks.

    Args:
      location: pydantic's; of a section of several kinds it names the one that the document chose.
    """
    section: type[BaseModel] | None = Config
    for key in keys[:-1]:
        info = section.model_fields.get(key) if section else None
        kinds = sections_of(info.annotation) if info else ()
        chosen = [kind for kind in kinds if len(kinds) == 1 or kind.model_fields["kind"].default in location]
        section = chosen[0] if chosen else None
    return section.model_fields.get(keys[-1]) if section else None


def _expected(keys: tuple[str, ...], location: Sequence[str | int]) -> str:
    """The type of a key in words; where the path leads into a list or mapping, that of the whole."""
    for end in range(len(keys), 0, -1):
        info = _field(keys[:end], location)
        if info is not None:
            words = describe(info.annotation, info.metadata)
            return words if end == len(keys) else f"{'.'.join(keys[:end])} to be {words}"
    raise AssertionError(f"{keys} is not in the schema")


def _hint(keys: tuple[str, ...], location: Sequence[str | int]) -> str:
    """What an unknown key may have meant: its plural or singular in its own section, a namesake in another, else the
    nearest in its own, else any."""
    prefix = "".join(f"{key}." for key in keys[:-1])
    siblings = [key.removeprefix(prefix) for key, _ in walk() if key.startswith(prefix)]
    siblings = [key for key in dict.fromkeys(siblings) if _field((*keys[:-1], key), location)]
    namesakes = [key for key, _ in walk() if key.rpartition(".")[2] == keys[-1] and key != ".".join(keys)]
    near = nearest(keys[-1], siblings)
    other = OTHER_NAMES.get(keys[-1])
    if other is not None and not namesakes:
        return f"did you mean {other}?"
    if namesakes and near and near.rstrip("s") == keys[-1].rstrip("s"):
        namesakes = [prefix + near, *namesakes]
    if namesakes or near:
        return f"did you mean {' or '.join(dict.fromkeys(namesakes)) or prefix + str(near)}?"
    return f"known keys: {', '.join(siblings)}"


def _show(value: Any) -> str:
    """A found value as YAML, cut to fit a line."""
    if value is None:
        return "null"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
