"""Words replaced by those that a masked language model expects in their place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config.model import ModelConfig
from jaxlm.config.schema import Config
from jaxlm.data.augmentation.pieces import Piece, cased_as, is_ideograph, join_pieces
from jaxlm.data.augmentation.rewriting import Draft
from jaxlm.data.config import DataConfig
from jaxlm.errors import UserError
from jaxlm.hf.opening import open_model
from jaxlm.inference.trained import TrainedModel, open_trained
from jaxlm.parallel.placement import shard_batch
from jaxlm.tasks.masked_lm import MaskedLMConfig
from jaxlm.tokenizer.vocabulary import continues_word

ROWS = 16
"""Texts that the model reads at a time; times the mesh's shards of a batch."""
LONGEST = 512
"""Most tokens of a window of a long text."""
SPARE = 8
"""Candidates beyond `top_k`, since a word is not replaced by itself."""


class _Window(NamedTuple):
    """A model input: part of a draft's text with some words masked."""

    draft: int
    ids: np.ndarray
    columns: list[int]
    pieces: list[int]
    """Of each masked column, the place of its word in the draft."""


@dataclass(frozen=True)
class MaskedWords:
    """Replaces words of a text at random: each chosen word becomes one mask, and then one of the `top_k` words that the
    model finds likeliest there, drawn by their probabilities.

    Kobayashi, "Contextual Augmentation: Data Augmentation by Words with Paradigmatic Relations" (2018,
    arXiv:1805.06201), with a masked language model as in Wu et al., "Conditional BERT Contextual Augmentation" (2018,
    arXiv:1812.06705), without the label as a condition.

    Attributes:
      share: of the words; at least one of a text.
    """

    trained: TrainedModel
    share: float
    top_k: int

    def rewrite(self, drafts: Sequence[Draft]) -> list[list[Piece]]:
        written = [list(draft.pieces) for draft in drafts]
        windows = [window for number, draft in enumerate(drafts) for window in self._windows(number, draft)]
        order = sorted(range(len(windows)), key=lambda i: (len(windows[i].ids), i))
        found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        for start in range(0, len(order), self._rows):
            chosen = order[start : start + self._rows]
            found |= dict(zip(chosen, self._candidates([windows[i] for i in chosen]), strict=True))
        for number, window in enumerate(windows):
            draft = drafts[window.draft]
            for place, candidates in zip(window.pieces, found[number], strict=True):
                written[window.draft][place] = self._drawn(draft.pieces[place], *candidates, draft.draw)
        return written

    def _windows(self, number: int, draft: Draft) -> list[_Window]:
        """The model inputs of a draft, each of its masked words in one of them, the one with most text around it."""
        words = [i for i, piece in enumerate(draft.pieces) if piece.is_word and any(map(str.isalpha, piece.text))]
        if not words:
            return []
        hits = [i for i in words if draft.draw.random() < self.share] or [words[int(draft.draw.integers(len(words)))]]
        tokenizer, limit = self.trained.setup.tokenizer, self._longest
        starts, words_of = _parts(draft.pieces)
        text, _ = join_pieces(draft.pieces)
        ids, part_of = tokenizer.encode_parts(text, starts)
        masked = _masked(ids, np.asarray(words_of, np.int32)[part_of], set(hits), tokenizer.mask_id)
        hit_columns = np.isin(masked[1], hits)
        framed = tokenizer.frame(masked[0], max_length=limit, stride=limit // 4)
        best: dict[int, tuple[int, int, int]] = {}  # token -> (tokens around it, window, column)
        for w, (_, places) in enumerate(framed):
            for column, place in enumerate(places):
                if place >= 0 and hit_columns[place]:
                    around = min(column, len(places) - 1 - column)
                    best[int(place)] = max(best.get(int(place), (-1, 0, 0)), (around, -w, column))
        windows: list[_Window] = []
        by_window = sorted((-w, column, place) for place, (_, w, column) in best.items())
        for w, group in groupby(by_window, key=lambda item: item[0]):
            chosen = list(group)
            pieces = [int(masked[1][place]) for _, _, place in chosen]
            windows.append(_Window(number, framed[w][0], [column for _, column, _ in chosen], pieces))
        return windows

    def _candidates(self, windows: Sequence[_Window]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Of each masked column of each window, (ids, logits) of the likeliest tokens, the likeliest first."""
        rows, slots = self._rows, _rounded(max(len(window.columns) for window in windows), 4)
        length = min(_rounded(max(len(window.ids) for window in windows), 32), self._longest)
        pad = self.trained.setup.tokenizer.pad_id or 0
        batch = {
            "tokens": np.full((rows, length), pad, np.int32),
            "segment_ids": np.zeros((rows, length), np.int32),
            "positions": np.zeros((rows, length), np.int32),
            "slot_positions": np.zeros((rows, slots), np.int32),
        }
        for r, window in enumerate(windows):
            size = len(window.ids)
            batch["tokens"][r, :size], batch["segment_ids"][r, :size] = window.ids, 1
            batch["positions"][r, :size] = np.arange(size)
            batch["slot_positions"][r, : len(window.columns)] = window.columns
        params, rules = self.trained.params, self.trained.setup.rules
        arrays = shard_batch(batch, rules, self.trained.setup.task.fields)
        scores, ids = jax.device_get(self._step(params, arrays))
        return [[(ids[r, s], scores[r, s]) for s in range(len(window.columns))] for r, window in enumerate(windows)]

    def _drawn(self, piece: Piece, ids: np.ndarray, scores: np.ndarray, draw: np.random.Generator) -> Piece:
        """The piece with a drawn word in it; as it is where no other word is among the candidates."""
        ideograph = is_ideograph(piece.text)
        words = {int(i): self._word(int(i)) for i, score in zip(ids, scores, strict=True) if np.isfinite(score)}
        old = piece.text.strip(_MARKS)
        usable = [
            i for i, word in words.items() if is_ideograph(word) == ideograph and word.casefold() != old.casefold()
        ][: self.top_k]
        if not usable or not old:
            return piece
        logits = np.asarray([scores[list(ids).index(i)] for i in usable], np.float64)
        weights = np.exp(logits - logits.max())
        word = words[int(draw.choice(usable, p=weights / weights.sum()))]
        before, _, after = piece.text.partition(old)
        return piece._replace(text=before + cased_as(old, word) + after)

    def _word(self, token: int) -> str:
        return self.trained.setup.tokenizer.decode([token]).strip()

    @cached_property
    def _step(self) -> Any:
        model, most = self.trained.setup.model, self.top_k + SPARE
        usable = jnp.asarray(self._usable)

        @jax.jit
        def step(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
            logits = model.apply(params, batch, None).logits()
            known = jnp.pad(usable, (0, logits.shape[-1] - len(usable)))
            scores, ids = jax.lax.top_k(jnp.where(known, logits, -jnp.inf), min(most, logits.shape[-1]))
            return scores, ids

        return step

    @cached_property
    def _usable(self) -> np.ndarray:
        """bool [V], the tokens that are a word by themselves."""
        tokenizer = self.trained.setup.tokenizer
        usable = ~continues_word(tokenizer)
        usable[list(tokenizer.special_ids)] = False
        for token in np.flatnonzero(usable):
            word = self._word(int(token))
            usable[token] = (
                word.isalpha() or bool(word) and all(map(str.isalpha, word.replace("'", "").replace("-", "")))
            )
        return usable

    @property
    def _longest(self) -> int:
        return self.trained.setup.config.data.max_length

    @property
    def _rows(self) -> int:
        return ROWS * self.trained.setup.rules.num_batch_shards


_WORD = re.compile(r"[^\W\d_]+(['\u2019-][^\W\d_]+)*")
"""Letters, also joined by an apostrophe or a hyphen."""
_MARKS = "\"'()[]{}<>.,;:!?*_-\u2018\u2019\u201c\u201d\u2026"
"""What stands around a word in its piece and stays there."""


def open_masked_words(name: str, share: float, top_k: int) -> MaskedWords:
    """Opens a masked language model.

    Args:
      name: a run of `task.kind: masked_lm`, an HF-format directory or a hub id.
    Raises:
      UserError: no model there, or one without a trained masked_lm head or without a mask token.
    """
    checkpoint = open_model(name, key="--model")
    if "masked_lm" not in checkpoint.family.heads:
        raise UserError(
            f"--model {name}: a {checkpoint.family.name} fills no masks; expected a masked language model, such as BERT"
        )
    config = Config(
        name="augment",
        model=ModelConfig(init=name),
        task=MaskedLMConfig(),
        data=DataConfig(max_length=min(LONGEST, checkpoint.model_config.max_positions)),
    )
    return MaskedWords(open_trained(name, config), share, top_k)


def _parts(pieces: Iterable[Piece]) -> tuple[list[int], list[int]]:
    """Where the words of a joined text and the marks around them begin, and the number of each word's piece; of marks
    and of kept spans, -1."""
    starts: list[int] = []
    words: list[int] = []
    place = 0
    for number, piece in enumerate(pieces):
        place += len(piece.gap)
        word = piece.text.strip(_MARKS) if piece.is_word else ""
        before = piece.text.partition(word)[0] if word else piece.text
        for text, of_word in ((before, -1), (word, number), (piece.text[len(before) + len(word) :], -1)):
            if text:
                starts.append(place)
                words.append(of_word)
            place += len(text)
    return starts, words


def _masked(ids: np.ndarray, word_of: np.ndarray, hits: set[int], mask_id: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The tokens with one mask in the place of each hit word, and the word of each."""
    assert mask_id is not None  # a masked LM's task has one
    repeated = np.zeros(len(ids), bool)
    repeated[1:] = word_of[1:] == word_of[:-1]
    hit = np.isin(word_of, list(hits))
    kept = ~(hit & repeated)
    return np.where(hit, np.int32(mask_id), ids)[kept], word_of[kept]


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step
