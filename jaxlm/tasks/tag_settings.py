"""What the data settle of tagging: the scheme that is learned, and the tags in the order of the head's outputs."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxlm.data.label_names import check_distinct
from jaxlm.data.sources.table import Table
from jaxlm.metrics.entities import OUTSIDE, split_tag
from jaxlm.tasks.labels import say_renamed
from jaxlm.tasks.tag_schemes import Scheme, convert_tags, detect_scheme, has_mark, tag_names

log = logging.getLogger("jaxlm")

_PLACEHOLDER = re.compile(r"LABEL_\d+")
_OTHER_MARK = re.compile(r"[BIESMLU][_:/.]\S")
_SHOWN = 30


class TagSettings(NamedTuple):
    """The scheme that is learned, and the tags in id order."""

    scheme: Scheme
    names: tuple[str, ...]


def sentences_of(table: Table, column: str, names: Sequence[str] | None) -> list[list[str]]:
    """The tags of the rows that have a tag to each token.

    Args:
      names: of tags that are numbers, from 0.
    """
    found: list[list[str]] = []
    for row in table.rows:
        tags: Any = row[column].split() if isinstance(row[column], str) else row[column]
        if not isinstance(tags, list):
            continue
        if names is not None and all(type(tag) is int and 0 <= tag < len(names) for tag in tags):
            found.append([names[int(tag)] for tag in tags])
        elif all(isinstance(tag, str) and tag.strip() for tag in tags):
            found.append(tags)
    return found


def settle_tags(
    train: Table | None,
    column: str,
    *,
    spans: bool,
    scheme: Scheme | Literal["auto"],
    labels: Sequence[str] | None,
    known: Sequence[str] | None,
) -> TagSettings:
    """Settles by the config, else by the checkpoint where its tags are those of the training rows, else by these.

    Args:
      column: of the tags or, if `spans`, of the entities.
      scheme, labels: those of the config.
      known: tags of the checkpoint whose head is taken over.
    Raises:
      UserError: a name twice in `labels`.
    """
    if labels is not None:
        check_distinct(tuple(labels), "task.labels")
    sentences = [] if train is None or spans else sentences_of(train, column, labels)
    written = detect_scheme(sentences)
    names = labels
    if names is None and known is not None:
        learned = _learned(known, scheme, written)
        found = _in_rows(sentences, _types(train, column), learned)
        if found <= set(known):
            names = known
        elif not all(map(_PLACEHOLDER.fullmatch, known)):
            say_renamed(tuple(known), _names(sentences, _types(train, column), _learned(None, scheme, written)))
    learned = _learned(names, scheme, written)
    if names is None:
        names = _names(sentences, _types(train, column) if spans else [], learned)
    if train is not None:
        _say(sentences, written, TagSettings(learned, tuple(names)))
    return TagSettings(learned, tuple(names))


def _learned(names: Sequence[str] | None, scheme: Scheme | Literal["auto"], written: Scheme) -> Scheme:
    """The scheme of a model: the one asked for, else that of its tags, else that of the rows; bio for iob1."""
    if scheme != "auto":
        return scheme
    found = written if names is None else detect_scheme([[name] for name in names])
    return "bio" if found == "iob1" else found


def _types(train: Table | None, column: str) -> list[str]:
    """The labels of entities in a column of character spans."""
    cells = [] if train is None else [row[column] for row in train.rows if isinstance(row[column], list)]
    labels = [entity.get("label") for cell in cells for entity in cell if isinstance(entity, Mapping)]
    return sorted({label for label in labels if isinstance(label, str) and label.strip()})


def _in_rows(sentences: Sequence[Sequence[str]], types: Sequence[str], scheme: Scheme) -> set[str]:
    """The tags that the rows need in a scheme; of spans, whose lengths in words are not known yet, one of each type."""
    found = {tag for tags in sentences for tag in convert_tags(tags, scheme)}
    return found | {f"B-{label}" for label in types}


def _names(sentences: Sequence[Sequence[str]], types: Sequence[str], scheme: Scheme) -> tuple[str, ...]:
    """The tags of a model that learns from these rows."""
    tags = {tag for sentence in sentences for tag in sentence}
    if scheme == "bare":
        return tuple(sorted(tags))
    return tag_names(sorted({*types, *(split_tag(tag)[1] for tag in tags if has_mark(tag))}), scheme)


def _say(sentences: Sequence[Sequence[str]], written: Scheme, settled: TagSettings) -> None:
    counts = Counter(tag for tags in sentences for tag in tags)
    log.info("task: tagging, scheme %s (%s); %d tags: %s", settled.scheme,
             f"tags are written in {written}" if sentences else "entities are character spans", len(settled.names),
             ", ".join(f"{n} {counts[n]:,}" if n in counts else n for n in settled.names[:_SHOWN]))  # fmt: skip
    inside = [tag for tag in counts if tag != OUTSIDE]
    if settled.scheme == "bare" and OUTSIDE in counts and all(map(_OTHER_MARK.match, inside)):
        log.warning("tags such as %r are read as classes, not as parts of entities, since no dash is behind the mark; "
                    "write %r for them", inside[0], f"{inside[0][0]}-{inside[0][2:]}")  # fmt: skip
