"""Parallel files for `jaxlm init`: line n of one belongs to line n of the other; their names say what each holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxlm.data.config import SourceConfig
from jaxlm.data.sources.files import pair_files, tells_format
from jaxlm.data.sources.sources import load
from jaxlm.data.sources.text_files import COMPRESSED
from jaxlm.errors import UserError
from jaxlm.new_config.looking import KEY, MOST_ROWS, Looked, file_encoding

Columns = dict[str, str | list[str]]
"""As `path` of parallel files: column -> its file or pattern, or several."""


def are_parallel(paths: Sequence[str], key: str = KEY) -> bool:
    """Returns whether several files hold parallel texts, and not rows, by their names.

    Raises:
      UserError: some hold rows by their names, and others do not.
    """
    kinds = {tells_format(Path(path)): path for path in paths}
    if len(kinds) > 1:
        raise UserError(
            f"{key}: {kinds[True]} holds rows, by its name, and {kinds[False]} does not; expected files of one kind: "
            "rows, or texts of which line n of one belongs to line n of the other"
        )
    return len(paths) > 1 and False in kinds


def name_columns(paths: Sequence[str], key: str = KEY) -> Columns:
    """Returns parallel files by their columns, which are called by what tells the files' names apart: `en` and `de`.

    Args:
      paths: two files or patterns; or more, of two endings.
    Raises:
      UserError: they are not of two kinds, as many of each.
    """
    if len(paths) == 2:
        first, second = paths
        if first == second:
            raise UserError(f"{key}: {first} twice; expected two files, line n of one belonging to line n of the other")
        names = _differing(first, second)
        return {names[0]: first, names[1]: second}
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(_words(Path(path).name)[-1], []).append(path)
    counts = {len(group) for group in groups.values()}
    if len(groups) != 2 or len(counts) != 1:
        found = ", ".join(f"{len(group)} that end with {ending}" for ending, group in groups.items())
        raise UserError(
            f"{key}: expected as many parallel files of each of two endings (a.en b.en a.de b.de), or two patterns in "
            f"quotes, found {found}"
        )
    return {_plain(ending): group for ending, group in groups.items()}


def look_at_parallel(paths: Sequence[str]) -> Looked:
    """Looks at parallel files: the text that is read comes first, the one that is written second.

    Raises:
      UserError: they cannot be told apart, found or read, or have different numbers of lines.
    """
    columns = name_columns(paths)
    first = pair_files(columns, KEY)[0]
    encodings = {name: file_encoding(file) for name, file in first.items()}
    notes = [f"lines of {' and '.join(map(str, first.values()))} belong together; columns {', '.join(columns)}"]
    if len(set(encodings.values())) > 1:
        found = ", ".join(f"{first[name]} is {encoding}" for name, encoding in encodings.items())
        raise UserError(f"{KEY}: {found}; expected one encoding: save both as UTF-8")
    settings: dict[str, str] = {}
    if (encoding := next(iter(encodings.values()))) != "utf-8":
        settings["encoding"] = encoding
        notes.append(f"encoding {encoding}: the files are not UTF-8, and read as this; look whether letters are right")
    source = SourceConfig.model_validate({"path": columns, **settings, "limit": MOST_ROWS})
    table = load(source, key=KEY, split="train", on_bad_row="skip")
    return Looked(columns, settings, table, len(table) < MOST_ROWS, tuple(notes))


def held_out_files(paths: Sequence[str], like: Mapping[str, str | list[str]], key: str) -> Columns:
    """Returns the parallel files of another split by the columns of the training files.

    Raises:
      UserError: they cannot be told apart, or are not there.
    """
    columns = name_columns(paths, key)
    if set(columns) != set(like):
        columns = dict(zip(like, columns.values(), strict=True))
    pair_files(columns, key)
    return {name: columns[name] for name in like}


def _differing(one: str, other: str) -> tuple[str, str]:
    """What tells two paths apart, last in their names, else in their folders."""
    for a, b in zip(reversed(Path(one).parts), reversed(Path(other).parts), strict=False):
        for word, their in zip(reversed(_words(a)), reversed(_words(b)), strict=False):
            if word != their:
                return _without_common(re.split("[_-]", word), re.split("[_-]", their))
    return "source", "target"


def _without_common(one: list[str], other: list[str]) -> tuple[str, str]:
    """Two names without the words that both begin or end with: `en` and `de` of `train_en` and `train_de`."""
    while len(one) > 1 and len(other) > 1 and one[0] == other[0]:
        one, other = one[1:], other[1:]
    while len(one) > 1 and len(other) > 1 and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    names = _plain("_".join(one)), _plain("_".join(other))
    return names if names[0] != names[1] else ("source", "target")


def _words(name: str) -> list[str]:
    """The parts of a file's name between dots, without that of a compression."""
    words = name.split(".")
    return words[:-1] if len(words) > 1 and f".{words[-1].lower()}" in COMPRESSED else words


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_") or "text"
