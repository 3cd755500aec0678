"""Text to token ids: loading a tokenizer, encoding texts and pairs with truncation or windows, and saving."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models

from jaxlm.errors import UserError
from jaxlm.tokenizer import files, special_tokens

_CHUNK = 4096  # texts held at a time as the library's own, large, encoding objects

# Keys of tokenizer_config.json that the saved tokenizer.json answers, or that name files of the machine it came from.
_SUPERSEDED = (
    "add_bos_token", "add_eos_token", "added_tokens_decoder", "auto_map", "extra_ids", "legacy", "name_or_path",
    "sp_model_kwargs", "special_tokens_map_file", "tokenizer_file", "vocab_file",
)  # fmt: skip


@dataclass(frozen=True)
class Encoding:
    """One model input: a text, a pair, or one window of it."""

    ids: np.ndarray
    """int32 [T], special tokens included."""
    type_ids: np.ndarray
    """int32 [T]: 0 / 1 for the first / second text, where the tokenizer tells them apart."""
    truncated: bool
    """The text was longer than `max_length`, so that this is not all of it."""


class Tokenizer:
    """A Hugging Face tokenizer of any kind. The id of a special token that it does not have is None."""

    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    sep_id: int | None
    pad_id: int | None
    cls_id: int | None
    mask_id: int | None
    vocab_size: int
    """Largest id + 1, added tokens included."""

    def __init__(self, source: files.TokenizerFiles):
        self._files = source
        self._backend = source.backend
        self.vocab_size = max(self._backend.get_vocab().values()) + 1
        for role in special_tokens.ROLES:
            token = source.roles.get(role)
            setattr(self, f"{role}_id", None if token is None else self._backend.token_to_id(token))

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        stride: int | None = None,
        special_tokens: bool = True,
    ) -> list[list[Encoding]]:
        """Returns one list per text: a single `Encoding` or, with `stride`, its overlapping windows.

        Args:
          texts: any strings, empty ones too.
          pairs: the second text of each pair.
          max_length: most tokens, special ones included. A longer text loses its end; of a pair, the longer text is
            cut first (Transformers' 'longest_first').
          stride: tokens that neighbouring windows share. Of a pair the second text is windowed and the first stays
            whole, unless it leaves the second no more than `stride` tokens: then its end is cut.
          special_tokens: put the model's special tokens around the texts.
        Raises:
          UserError: `max_length` leaves no room for text, or `stride` none for a window to move on.
        """
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(pairs)} second texts")
        if stride is not None and max_length is None:
            raise ValueError("stride needs max_length")
        columns = [texts] if pairs is None else [texts, pairs]
        layout = _Layout.of(self._backend, len(columns), special_tokens)
        room = sys.maxsize if max_length is None else _room(layout, max_length, stride)
        left = self._files.config.get("truncation_side") == "left"
        result = []
        for sequences in zip(*map(self._ids, columns), strict=True):
            truncated = sum(map(len, sequences)) > room
            if not truncated:
                pieces = [sequences]
            elif stride is None:
                pieces = [_truncate(sequences, room, left)]
            else:
                pieces = _windows(sequences, room, stride)
            result.append([Encoding(*layout.fill(piece), truncated) for piece in pieces])
        return result

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The vocabulary entry of each id; `<id 31999>` for one that the vocabulary does not use."""
        return [self._backend.id_to_token(int(i)) or f"<id {int(i)}>" for i in ids]

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens, those without a role ("<extra_id_0>") included, ascending."""
        added = self._backend.get_added_tokens_decoder()
        named = (getattr(self, f"{role}_id") for role in special_tokens.ROLES)
        return tuple(sorted({i for i, token in added.items() if token.special} | {i for i in named if i is not None}))

    @cached_property
    def special_token_affixes(self) -> tuple[np.ndarray, np.ndarray]:
        """int32 ids of the special tokens that go before and after a single text."""
        parts = _Layout.of(self._backend, 1, True).parts
        place = next(i for i, part in enumerate(parts) if not isinstance(part, np.ndarray))
        empty = np.zeros(0, np.int32)
        before, after = parts[:place], parts[place + 1 :]
        return np.concatenate([empty, *before]), np.concatenate([empty, *after])

    def id(self, token: str) -> int | None:
        """The id of a vocabulary entry; None for one that the vocabulary lacks."""
        return self._backend.token_to_id(token)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides ids: equal after `save` and `load_tokenizer`."""
        rules = json.loads(self._backend.to_str())
        del rules["version"]
        parts = [rules, self._files.roles, self._files.config.get("truncation_side") == "left"]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def save(self, directory: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json, and vocabulary files as found.

        The class named is the generic one, so that every version of Transformers runs tokenizer.json as it stands;
        under a class of its own, Transformers 5 would rebuild the rules, for Llama with other ids for runs of spaces.
        """
        roles = {f"{role}_token": token for role, token in self._files.roles.items()}
        names = {f"{role}_token" for role in special_tokens.ROLES}.union(_SUPERSEDED)
        config = {key: value for key, value in self._files.config.items() if key not in names}
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        if self.cls_id is None or not _Layout.of(self._backend, 2, True).kinds.any():
            inputs.remove("token_type_ids")
        config = {"model_input_names": inputs, **config, **roles, "tokenizer_class": "PreTrainedTokenizerFast"}
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.copies.items():
            (directory / name).write_bytes(content)
        (directory / "tokenizer.json").write_text(self._backend.to_str(pretty=True), "utf-8")
        for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", roles)):
            (directory / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")

    def _ids(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """int32 [T] of each text, without special tokens or truncation."""
        for start in range(0, len(texts), _CHUNK):
            chunk = list(texts[start : start + _CHUNK])
            for encoding in self._backend.encode_batch_fast(chunk, add_special_tokens=False):
                yield np.asarray(encoding.ids, np.int32)


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads a Hugging Face tokenizer directory.

    Tried in turn: tokenizer.json; vocab.txt (WordPiece); vocab.json + merges.txt (byte-level BPE); spiece.model,
    tokenizer.model or sentencepiece.bpe.model. SentencePiece models give the ids of the sentencepiece library.

    Raises:
      UserError: no tokenizer files in the directory, or damaged ones.
    """
    return Tokenizer(files.read(Path(path)))


@dataclass(frozen=True)
class _Layout:
    """Where special tokens and texts go."""

    parts: tuple[int | np.ndarray, ...]
    """The number of a text, or the ids of special tokens."""
    kinds: np.ndarray
    """Token type of each part, int32."""

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer, texts: int, special_tokens: bool) -> _Layout:
        """What the backend's post-processor does, seen on texts of one token each."""
        probe = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        if backend.post_processor is not None:
            probe.post_processor = backend.post_processor
        encoding = probe.encode("a", "a" if texts == 2 else None, add_special_tokens=special_tokens)
        parts = zip(encoding.sequence_ids, encoding.ids, strict=True)
        return cls(
            tuple(np.asarray([i], np.int32) if text is None else text for text, i in parts),
            np.asarray(encoding.type_ids, np.int32),
        )

    @property
    def special_tokens(self) -> int:
        return sum(isinstance(part, np.ndarray) for part in self.parts)

    @property
    def texts(self) -> int:
        return len(self.parts) - self.special_tokens

    def fill(self, sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and token types, each int32 [T]."""
        pieces = [part if isinstance(part, np.ndarray) else sequences[part] for part in self.parts]
        return np.concatenate(pieces), np.repeat(self.kinds, [len(piece) for piece in pieces])


def _room(layout: _Layout, max_length: int, stride: int | None) -> int:
    """Tokens left for the texts."""
    room = max_length - layout.special_tokens
    if room < layout.texts:
        raise UserError(
            f"max_length: {max_length} leaves no room for text beside {layout.special_tokens} special tokens; "
            f"expected at least {layout.special_tokens + layout.texts}"
        )
    if stride is not None and not 0 <= stride < room:
        raise UserError(
            f"stride: {stride} does not let a window of max_length {max_length} move on; expected 0 to {room - 1}"
        )
    return room


def _truncate(sequences: Sequence[np.ndarray], room: int, left: bool) -> tuple[np.ndarray, ...]:
    """Cuts the longest first; of two that are both too long the longer, or else the second, keeps the odd token."""
    lengths = [room]
    if len(sequences) == 2:
        first, second = map(len, sequences)
        half = room // 2
        if min(first, second) <= half:
            lengths = [min(first, room - min(second, half)), min(second, room - min(first, half))]
        else:
            lengths = [room - half, half] if first > second else [half, room - half]
    return tuple(s[max(0, len(s) - n) :] if left else s[:n] for s, n in zip(sequences, lengths, strict=True))


def _windows(sequences: Sequence[np.ndarray], room: int, stride: int) -> list[tuple[np.ndarray, ...]]:
    """Windows over the last text, each behind the whole of the first."""
    *first, last = sequences
    if first and len(first[0]) + stride >= room:
        first = [first[0][: max(room - len(last), min(room // 2, room - stride - 1))]]
    size = room - sum(map(len, first))
    starts = range(0, max(1, len(last) - stride), max(1, size - stride))
    return [(*first, last[start : start + size]) for start in starts]
