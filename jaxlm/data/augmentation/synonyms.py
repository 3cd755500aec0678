"""Reads a table of synonyms."""

from __future__ import annotations

from pathlib import Path

from jaxlm.data.augmentation.edits import Synonyms
from jaxlm.data.sources.text_files import open_text
from jaxlm.errors import UserError
from jaxlm.local_paths import missing


def read_synonyms(path: str) -> Synonyms:
    """Returns the synonyms of each word, by the word in small letters.

    Args:
      path: of a text file, plain, .gz or .zst; a line is a word and, behind tabs, words that may stand in its place.
        Blank lines and lines that begin with `#` are skipped.
    Raises:
      UserError: no such file, or a line without a synonym.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"data.augment.synonyms: no file {path}{missing(file)}")
    table: dict[str, tuple[str, ...]] = {}
    with open_text(file, "utf-8", "data.augment.synonyms") as opened:
        for number, line in enumerate(opened.text, 1):
            word, *others = [part.strip() for part in line.split("\t")]
            others = [other for other in others if other]
            if not word and not others or word.startswith("#"):
                continue
            if not word or not others:
                raise UserError(
                    f"data.augment.synonyms: {path}, line {number}: expected a word and its synonyms, with tabs "
                    f"between, found {line.strip()!r:.60}"
                )
            known = table.get(word.lower(), ())
            table[word.lower()] = (*known, *(other for other in others if other not in known))
    if not table:
        raise UserError(f"data.augment.synonyms: {path} holds no line; expected a word and, behind tabs, its synonyms")
    return table
