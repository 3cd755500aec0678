"""`RowStream`: endless rows of one source, tokenised as they are drawn (`data.tokenize: stream`)."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from typing import Any

import numpy as np

from jaxlm.data.config import CleanConfig
from jaxlm.data.corpus.build import surroundings
from jaxlm.data.corpus.documents import Documents, Place
from jaxlm.data.corpus.file_digests import Contents
from jaxlm.data.corpus.row_plan import Cost, Segment, row_settings, segment_costs
from jaxlm.data.corpus.text_batches import TextBatch, text_batches
from jaxlm.data.examples.packing import plan_rows
from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("jaxlm")

_WINDOW_ROWS = 256  # at least so many rows are shuffled among themselves


class RowStream:
    """Rows of a source that is read in order, over and over, with the segments that `plan_corpus` would make.

    Documents are read into a window of some hundred rows, which are drawn in an order that (seed, window) gives. Across
    documents, what is left of the text goes into the next window, beyond the end of the source, too, so that no epoch
    is cut like the one before it; otherwise only the rest of a document that goes on does.

    Args:
        documents: the source.
        clean: text actions; `deduplicate` and `leaks: drop` need a memory that a stream has not.
        wrap, room, overlap, across_documents, overhead, cost: as in `open_corpus` and `plan_corpus`.
        seed: decides the order.

    Attributes:
        room: columns of a row.
        max_segments: most segments that a row can hold.
        settings: what decides the rows, under names for messages.
        fingerprint: hex SHA-256 of everything else that does: documents, cleaning, tokenizer.
        padding_share: of the window at hand.

    Raises:
        UserError: the source cannot be read or holds no text, or a setting needs a tokenised corpus.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Tokenizer,
        *,
        clean: CleanConfig,
        wrap: str,
        room: int,
        overlap: int,
        across_documents: bool,
        overhead: int = 0,
        cost: Cost | None = None,
        seed: int,
    ) -> None:
        for key, refused in {"deduplicate": clean.deduplicate, "leaks=drop": clean.leaks == "drop"}.items():
            if refused:
                raise UserError(
                    f"data.clean.{key}: needs data.tokenize=once, which remembers the documents it has seen"
                )
        self.room, self._overlap, self._across = room, overlap, across_documents
        self._documents, self._tokenizer, self._clean, self._seed = documents, tokenizer, clean, seed
        self._before, self._after = surroundings(tokenizer, wrap)
        self._costs = segment_costs(room, overhead, cost)
        self.max_segments = 1 if across_documents else room // int(self._costs[1])
        self.settings = row_settings(room, overlap, across_documents, self._costs) | {"the seed of the windows": seed}
        text_actions = clean.model_dump(include={"unicode", "control_characters", "whitespace"})
        identity = [documents.identity(Contents()), text_actions, tokenizer.fingerprint, wrap, _WINDOW_ROWS]
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._warned = False
        self._move(0, Place(), 0, np.zeros(0, np.int32))

    def __iter__(self) -> RowStream:
        return self

    def __next__(self) -> list[Segment]:
        """The next row."""
        if self._taken == len(self._rows):
            self._read_window(self._start["window"] + 1)
        self._taken += 1
        return self._rows[self._taken - 1]

    def get_state(self) -> dict[str, Any]:
        """Where the stream stands, for JSON: where its window begins, and how many of the window's rows are taken."""
        return {**self._start, "taken": self._taken}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was taken; what was read before is skipped, and the window is read anew."""
        carry = np.frombuffer(base64.b64decode(state["carry"]), "<i4")
        self._move(state["window"], Place(*state["place"]), state["pieces"], carry.astype(np.int32))
        self._taken = state["taken"]

    def _move(self, window: int, place: Place, pieces: int, carry: np.ndarray) -> None:
        self._place, self._pieces, self._carry = place, pieces, carry
        self._batches = text_batches(self._documents, self._clean, place, pieces)
        self._read_window(window)

    def _read_window(self, number: int) -> None:
        """Read rows from where the reading stands, up to the end of the source or of the window.

        Raises:
            UserError: the source holds no text.
        """
        carry = base64.b64encode(self._carry.astype("<i4").tobytes()).decode()
        self._start = {"window": number, "place": list(self._place), "pieces": self._pieces, "carry": carry}
        segments: list[Segment] = []
        columns = fruitless = 0
        while columns < _WINDOW_ROWS * self.room:
            held = len(self._carry)
            batch = next(self._batches, None)
            if batch is not None:
                if batch.problem and not self._warned:
                    log.warning("%s: bad rows are skipped, the first: %s", self._documents.name, batch.problem)
                    self._warned = True
                made = self._segments(batch)
                segments += made
                columns += sum(self._columns(made))
                self._place, self._pieces = batch.place, batch.pieces
                fruitless = 0 if made or len(self._carry) != held else fruitless
                continue
            self._place, self._pieces = Place(), 0
            self._batches = text_batches(self._documents, self._clean)
            if segments:
                break
            fruitless += 1
            if fruitless > 2:  # of the first passes, one may have begun behind all text
                raise UserError(
                    f"{self._documents.name}: no text to learn from; expected documents of two tokens or more"
                )
        rows = [[i] for i in range(len(segments))]
        if not self._across:
            rows = plan_rows(self._columns(segments), self.room, self.room)
        order = np.random.default_rng([self._seed, number, 0x57]).permutation(len(rows))
        self._rows, self._taken = [[segments[i] for i in rows[row]] for row in order.tolist()], 0
        self.padding_share = 1 - columns / (len(rows) * self.room)

    def _columns(self, segments: list[Segment]) -> list[int]:
        return [int(self._costs[len(segment.tokens) - self._overlap]) for segment in segments]

    def _segments(self, batch: TextBatch) -> list[Segment]:
        """The segments that are complete with a batch; what is left of its text stays in `_carry`."""
        made: list[Segment] = []
        held, open_ = [self._carry], self._pieces > 0
        encoded = self._tokenizer.encode(batch.texts, special_tokens=False)
        for (piece,), ended in zip(encoded, batch.ended, strict=True):
            if ended is not None and not open_ and not len(piece.ids):
                continue  # blank to the tokenizer
            held += [piece.ids] if open_ else [self._before, piece.ids]
            open_ = ended is None
            if ended is not None:
                held.append(self._after)
                if not self._across:
                    made += self._cut(np.concatenate(held), whole=True)
                    held = []
        text = np.concatenate([np.zeros(0, np.int32), *held])
        cut = self._cut(text, whole=False)
        self._carry = text[len(cut) * (len(self._costs) - 1) :]
        return made + cut

    def _cut(self, text: np.ndarray, *, whole: bool) -> list[Segment]:
        """Segments of full length and, of a whole document, its end."""
        size = len(self._costs) - 1
        inputs = max(0, len(text) - self._overlap)
        count = -(-inputs // size) if whole else inputs // size
        return [Segment(text[k * size : (k + 1) * size + self._overlap], -1) for k in range(count)]
