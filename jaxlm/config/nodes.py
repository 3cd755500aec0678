"""YAML documents as nodes that know where they were written, and what is wrong with broken YAML in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from jaxlm.errors import UserError

# The YAML 1.2 core schema. YAML 1.1, PyYAML's own, reads `1e-3` as text and the label `no` as a boolean.
# Each type with its pattern and the characters it may begin with.
_CORE_SCHEMA = {
    "null": (r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "int": (r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    "float": (
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
}
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """SafeLoader that resolves plain scalars by the core schema alone."""


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a text which either version of YAML would take for something else."""


_Loader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _first) in _CORE_SCHEMA.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)
    Dumper.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)


@dataclass
class Node:
    """One value of the document and where it was written."""

    value: Any
    """A scalar, dict[str, Node] or list[Node]."""
    where: str
    raw: str | None = None
    """A plain scalar as it was written."""
    touched: list[str] = field(default_factory=list[str])
    """Overrides of something below."""

    def child(self, key: str | int) -> Node | None:
        """The entry of a mapping or list, if there is one."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and re.fullmatch(r"[0-9]+", str(key)) and int(key) < len(self.value):
            return self.value[int(key)]
        return None

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def parse(text: str, where: Callable[[int], str], mistakes: list[str]) -> Node | None:
    """Returns the document as nodes, None if there is none; duplicate keys go to `mistakes`."""
    try:
        document = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as e:
        raise UserError(_in_words(e, text, where)) from None
    except yaml.YAMLError as e:
        raise UserError(f"{where(1)}: not valid YAML: {e}") from None
    except RecursionError:
        raise UserError(f"{where(1)}: lists or mappings are nested too deeply") from None
    return None if document is None else _convert(document, document.start_mark.line + 1, where, mistakes, ())


_WORDS = (
    ("found character '\\t'", "a tab; YAML is indented with spaces"),
    ("found character", "a text that begins with this character must stand in quotes"),
    ("expected ',' or", "a bracket that is opened is not closed"),
    ("but found another document", "a second document begins; expected one"),
    ("mapping values are not allowed", "a colon where no key can be: is the line indented otherwise than its "
     "neighbors, or should the text that holds the colon stand in quotes?"),
    ("could not find expected ':'", "expected `key: value`, with a space after the colon"),
    ("expected <block end>", "the line is indented otherwise than its neighbors"),
    ("found undefined alias", "a text that begins with * must stand in quotes"),
    ("found unexpected end of stream", "a quote that is opened is not closed"),
)  # fmt: skip
"""Beginnings of PyYAML's messages, and what they mean to people who write a config."""
_NO_SPACE = re.compile(r"\s*[\w.]+:[^\s:]")


def _in_words(error: yaml.MarkedYAMLError, text: str, where: Callable[[int], str]) -> str:
    """What is wrong with a document, with line, column and the line itself."""
    mark, problem = error.problem_mark, error.problem or error.context or ""
    line, column = (mark.line, mark.column) if mark else (0, 0)
    words = next((words for beginning, words in _WORDS if problem.startswith(beginning)), problem)
    lines = text.split("\n")
    before = next((i for i in range(min(line, len(lines)) - 1, -1, -1) if lines[i].strip()), line)
    if problem.startswith(("mapping values", "could not find")) and _NO_SPACE.match(lines[before]):
        line, column, words = before, lines[before].index(":"), "expected a space after the colon of a key"
    shown = lines[line].rstrip() if line < len(lines) else ""
    shown = f"in the line {shown[:80]!r}" if shown else f"after the line {lines[before].rstrip()[:80]!r}"
    return f"{where(line + 1)}: not valid YAML: column {column + 1}, {shown}: {words}"


def _convert(
    node: yaml.Node, line: int, where: Callable[[int], str], mistakes: list[str], above: tuple[yaml.Node, ...]
) -> Node:
    place = where(line)
    if any(node is parent for parent in above):
        raise UserError(f"{place}: an alias refers to what it stands in")
    above = (*above, node)
    if isinstance(node, yaml.ScalarNode):
        return Node(_scalar(node, place), place, node.value if node.style is None else None)
    if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
        raise UserError(f"{place}: the tag {node.tag} is not supported")
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(item, item.start_mark.line + 1, where, mistakes, above) for item in node.value], place)
    children: dict[str, Node] = {}
    for key, value in node.value:
        key_line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{where(key_line)}: expected a word as key, found a list or mapping")
        if key.value in children:
            mistakes.append(f"{where(key_line)}: {key.value} stands twice, first at {children[key.value].where}")
        children[key.value] = _convert(value, key_line, where, mistakes, above)
    return Node(children, place)


def _scalar(node: yaml.ScalarNode, place: str) -> Any:
    kind, text = node.tag.removeprefix(_TAG), node.value
    if kind == "str":
        return text
    pattern, _ = _CORE_SCHEMA.get(kind, (None, []))
    if pattern is None or not re.match(pattern, text):
        raise UserError(f"{place}: the tag {node.tag} is not supported for {text!r}")
    if kind == "int" and len(text) > 1000:
        raise UserError(f"{place}: an integer of {len(text)} digits; expected at most 64 bits")
    if kind == "int":
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    if kind == "float":
        return float(re.sub(r"\.(?=[iInN])", "", text))
    return None if kind == "null" else text.lower() == "true"
