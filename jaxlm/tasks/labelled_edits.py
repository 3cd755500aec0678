"""Edits texts in which characters or words carry labels: entities and answers stay as they are, and are found again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxlm.data.augmentation.editor import Editor
from jaxlm.data.augmentation.pieces import FIXED, Piece, Span
from jaxlm.metrics.entities import OUTSIDE, split_tag
from jaxlm.tasks.answer_cells import place_answer, read_answers


def edit_tagged(tokens: Sequence[str], tags: Sequence[str], editor: Editor) -> tuple[list[str], list[str]]:
    """Edits the tokens whose tag is O; runs of others stay whole, and so does a token before a run that does not say by
    its first tag that it begins an entity (IOB1): without that, it would continue the run before.

    Returns:
      The tokens and a tag for each.
    """
    pieces: list[Piece] = []
    runs: list[slice] = []
    for i, (token, tag) in enumerate(zip(tokens, tags, strict=True)):
        if tag == OUTSIDE:
            pieces.append(Piece(token))
        elif runs and runs[-1].stop == i:
            runs[-1] = slice(runs[-1].start, i + 1)
        else:
            if pieces and pieces[-1].is_word and split_tag(tag)[0] not in "BS":
                pieces[-1] = pieces[-1]._replace(kept=FIXED)
            pieces.append(Piece("", kept=len(runs)))
            runs.append(slice(i, i + 1))
    new_tokens: list[str] = []
    new_tags: list[str] = []
    for piece in editor.edit_pieces(pieces):
        new_tokens += [piece.text] if piece.kept < 0 else tokens[runs[piece.kept]]
        new_tags += [OUTSIDE] if piece.kept < 0 else tags[runs[piece.kept]]
    return new_tokens, new_tags


def edit_entities(text: str, entities: Sequence[dict[str, Any]], editor: Editor) -> tuple[str, list[dict[str, Any]]]:
    """Edits a text outside of its entities, {"start", "end", "label"} each.

    Returns:
      The text, and the entities where they are in it.
    Raises:
      ValueError: entities that overlap or do not lie in the text.
    """
    spans = [(entity["start"], entity["end"]) for entity in entities]
    edited, moved = _edit_around(text, spans, editor)
    return edited, [
        {**entity, "start": start, "end": end} for entity, (start, end) in zip(entities, moved, strict=True)
    ]


def edit_answers(context: str, answers: Any, editor: Editor) -> tuple[str, list[dict[str, Any]]] | None:
    """Edits a context outside of its answers, in any form that `read_answers` reads.

    Returns:
      The context, and {"text", "answer_start"} of each answer; None where one is not found in the context.
    Raises:
      ValueError: a cell that holds no answers.
    """
    given = read_answers(answers)
    placed = [place_answer(answer, context) for answer in given]
    if not all(placed):
        return None
    spans = [(answer.start, answer.end) for answer in placed if answer is not None]
    edited, moved = _edit_around(context, spans, editor)
    return edited, [{"text": edited[start:end], "answer_start": start} for start, end in moved]


def _edit_around(text: str, spans: Sequence[Span], editor: Editor) -> tuple[str, list[Span]]:
    """Edits a text outside of spans, in any order, which may share characters; returns it, and where each is now."""
    if any(not 0 <= start < end <= len(text) for start, end in spans):
        raise ValueError("expected spans in the text")
    kept: list[Span] = []
    for start, end in sorted(set(spans)):
        if kept and start < kept[-1][1]:
            kept[-1] = kept[-1][0], max(end, kept[-1][1])
        else:
            kept.append((start, end))
    edited, moved = editor.edit_around(text, kept)
    places = []
    for start, end in spans:
        number = next(i for i, (first, last) in enumerate(kept) if first <= start < last)
        shift = moved[number][0] - kept[number][0]
        places.append((start + shift, end + shift))
    return edited, places
