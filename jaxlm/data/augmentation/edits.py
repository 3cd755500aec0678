"""Random edits of a text: words replaced, misspelled, put in, moved and left out.

Deletion, swap, insertion and synonyms follow Wei & Zou, "EDA: Easy Data Augmentation Techniques for Boosting
Performance on Text Classification Tasks" (2019, arXiv:1901.11196).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.augmentation.config import AugmentConfig
from jaxlm.data.augmentation.editor import Editor
from jaxlm.data.augmentation.pieces import Piece, cased_as, is_ideograph

Synonyms = Mapping[str, Sequence[str]]
"""Word, in small letters -> words that may stand in its place."""


@dataclass(frozen=True)
class RandomEditor(Editor):
    """Edits the texts of one copy of a row at random.

    Attributes:
      config: shares of the edits.
      draw: gives the random numbers, in the order of the texts.
      synonyms: {} without a table.
    """

    config: AugmentConfig
    draw: np.random.Generator
    synonyms: Synonyms

    def edit_pieces(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Returns edited pieces; those that are kept stay as they are, in their order."""
        edited = [self._reword(piece) if piece.is_word else piece for piece in pieces]
        self._insert(edited)
        self._swap(edited)
        return self._delete(edited)

    def _reword(self, piece: Piece) -> Piece:
        text = piece.text
        if self._hits(self.config.replace) and (others := self._synonyms_of(text)):
            text = cased_as(text, self._one_of(others))
        if self._hits(self.config.case):
            forms = {text.lower(), text.upper(), text.capitalize()} - {text}
            text = self._one_of(sorted(forms)) if forms else text
        if self._hits(self.config.typo):
            text = self._misspell(text)
        return piece._replace(text=text)

    def _misspell(self, text: str) -> str:
        """A slip of the hand; words of fewer than three letters stay."""
        letters = [i for i, character in enumerate(text) if character.isalpha()]
        if len(letters) < 3 or is_ideograph(text[letters[0]]):
            return text
        slip, i = int(self.draw.integers(3)), int(self.draw.choice(letters[:-1]))
        if slip == 0:
            return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
        return text[:i] + text[i] * (2 if slip == 1 else 0) + text[i + 1 :]

    def _insert(self, pieces: list[Piece]) -> None:
        words = [piece.text for piece in pieces if piece.is_word]
        for _ in range(self._number(self.config.insert, len(words))):
            word = self._one_of(words)
            word = self._one_of(self._synonyms_of(word) or [word])
            place = int(self.draw.integers(len(pieces) + 1))
            if place == len(pieces):
                pieces.append(Piece(word, "" if is_ideograph(word) else " "))
                continue
            while place and not (pieces[place].gap or pieces[place].is_word or pieces[place - 1].is_word):
                place -= 1  # not between a span that is kept and what touches it
            behind = pieces[place]
            gap = "" if is_ideograph(word) and is_ideograph(behind.text[:1]) else " "
            pieces[place : place + 1] = [Piece(word, behind.gap), behind._replace(gap=gap)]

    def _swap(self, pieces: list[Piece]) -> None:
        places = [i for i, piece in enumerate(pieces) if piece.is_word]
        if len(places) < 2:
            return
        for _ in range(self._number(self.config.swap / 2, len(places))):
            i, j = (places[k] for k in self.draw.choice(len(places), 2, replace=False))
            first, second = pieces[i].text, pieces[j].text
            pieces[i], pieces[j] = pieces[i]._replace(text=second), pieces[j]._replace(text=first)

    def _delete(self, pieces: list[Piece]) -> list[Piece]:
        if not self.config.delete:
            return pieces
        stays = [not piece.is_word or not self._hits(self.config.delete) for piece in pieces]
        if pieces and not any(stays):
            stays[int(self.draw.integers(len(pieces)))] = True
        left = [piece for piece, stay in zip(pieces, stays, strict=True) if stay]
        if left:
            left[0] = left[0]._replace(gap=pieces[0].gap)
        return left

    def _synonyms_of(self, word: str) -> Sequence[str]:
        return self.synonyms.get(word.lower(), ())

    def _hits(self, share: float) -> bool:
        return share > 0 and self.draw.random() < share

    def _number(self, share: float, words: int) -> int:
        return int(self.draw.binomial(words, share)) if share and words else 0

    def _one_of(self, values: Sequence[str]) -> str:
        return values[int(self.draw.integers(len(values)))]
