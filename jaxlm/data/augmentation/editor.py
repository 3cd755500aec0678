"""`Editor`: what tasks ask for an edited copy of a row's texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxlm.data.augmentation.pieces import Piece, Span, join_pieces, split_pieces


class Editor(ABC):
    """Edits the texts of one copy of a row, piece by piece."""

    @abstractmethod
    def edit_pieces(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Returns edited pieces; those that are kept stay as they are, in their order."""

    def edit(self, text: str) -> str:
        """Returns an edited text."""
        return self.edit_around(text, ())[0]

    def edit_around(self, text: str, kept: Sequence[Span]) -> tuple[str, list[Span]]:
        """Edits a text outside of spans, which stay in their order.

        Args:
          kept: spans in their order, which share no character.
        Returns:
          The new text, and where the spans are in it.
        """
        pieces, tail = split_pieces(text, kept)
        return join_pieces(self.edit_pieces(pieces), tail)
