"""Tokenizers: loading and saving; encoding texts, pairs, words and prompts; decoding."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from jaxlm.tokenizer import files
from jaxlm.tokenizer.added_tokens import ROLES, added_token, mark_special
from jaxlm.tokenizer.damage import refused_if_damaged
from jaxlm.tokenizer.families import TokenizerFamily, post_processor
from jaxlm.tokenizer.layout import TokenLayout, truncate, windows
from jaxlm.tokenizer.offsets import character_offsets
from jaxlm.tokenizer.saving import ModelSide, saved_config

_CHUNK = 4096  # texts held at a time as the library's own, large, encoding objects


@dataclass(frozen=True)
class Encoding:
    """One model input: a text, a pair, or one window of it."""

    ids: np.ndarray
    """int32 [T], special tokens included."""
    type_ids: np.ndarray
    """int32 [T]: 0 / 1 for the first / second text, where the tokenizer tells them apart."""
    truncated: bool
    """The text was longer than `max_length`, so that this is a part of it."""


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
        self._backend.encode_special_tokens = bool(source.config.get("split_special_tokens"))
        self.vocab_size = max(self._backend.get_vocab().values()) + 1
        for role in ROLES:
            token = source.roles.get(role)
            setattr(self, f"{role}_id", None if token is None else self._backend.token_to_id(token))

    @classmethod
    def from_backend(
        cls,
        backend: tokenizers.Tokenizer,
        family: TokenizerFamily,
        *,
        config: Mapping[str, object] | None = None,
        copies: Mapping[str, bytes] | None = None,
        unk: str | None = None,
    ) -> Tokenizer:
        """Returns a tokenizer over a new vocabulary, which begins with the family's special tokens.

        Args:
          backend: gets the family's sentinels and post-processor.
          config: further entries of tokenizer_config.json.
          copies: name -> content of files that are kept beside tokenizer.json.
          unk: the token for what the vocabulary lacks, in place of the family's.
        """
        named = {} if unk is None else {"unk": added_token(unk)}
        roles = mark_special(backend, family, named)
        backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in family.sentinels])
        if (processor := post_processor(family, backend, roles, {})) is not None:
            backend.post_processor = processor
        return cls(files.TokenizerFiles(backend, roles, dict(config or {}), dict(copies or {})))

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        stride: int | None = None,
        special_tokens: bool = True,
        ids: Callable[[Sequence[str]], Iterable[np.ndarray]] | None = None,
    ) -> list[list[Encoding]]:
        """Returns one list per text: a single `Encoding` or, with `stride`, its overlapping windows.

        Args:
          texts: any strings, empty ones too.
          pairs: the second text of each pair.
          max_length: most tokens, special ones included. A longer text loses its end; of a pair, the longer text is
            cut first (Transformers' 'longest_first').
          stride: tokens that neighboring windows share. Of a pair the second text is windowed and the first stays
            whole, unless it leaves the second no more than `stride` tokens: then its end is cut.
          special_tokens: put the model's special tokens around the texts.
          ids: gives what `token_ids` does, and is called in its place, for texts that were tokenized before.
        Raises:
          UserError: `max_length` leaves no room for text, or `stride` none for a window to move on.
        """
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(pairs)} second texts")
        if stride is not None and max_length is None:
            raise ValueError("stride needs max_length")
        columns = [texts] if pairs is None else [texts, pairs]
        layout = TokenLayout.from_backend(self._backend, len(columns), special_tokens)
        length = sys.maxsize if max_length is None else layout.text_length(max_length, stride)
        result = []
        for sequences in zip(*map(ids or self.token_ids, columns), strict=True):
            truncated = sum(map(len, sequences)) > length
            if not truncated:
                pieces = [sequences]
            elif stride is None:
                pieces = [truncate(sequences, length, self._cuts_left)]
            else:
                pieces = windows(sequences, length, stride)
            result.append([Encoding(*layout.fill(piece), truncated) for piece in pieces])
        return result

    def token_ids(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """Yields int32 [T] of each text, without special tokens or truncation."""
        for start in range(0, len(texts), _CHUNK):
            chunk = list(texts[start : start + _CHUNK])
            with refused_if_damaged("the tokenizer"):
                encoded = self._backend.encode_batch_fast(chunk, add_special_tokens=False)
            for encoding in encoded:
                yield np.asarray(encoding.ids, np.int32)

    def encode_words(self, words: Sequence[str], max_length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a text that is split into words, which are joined by a space, for labels that words carry.

        Args:
          words: any strings.
          max_length: most tokens, special ones included; a longer text loses its end.
        Returns:
          ids: int32 [T], special tokens included.
          word_index: int32 [T], the index of each token's word; -1 for special tokens.
        Raises:
          UserError: `max_length` leaves no room for text.
        """
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
        ids, index = self.encode_parts(" ".join(words), starts)
        [(framed, places), *_] = self.frame(ids, max_length=max_length)
        return framed, np.where(places < 0, -1, np.append(index, -1)[places]).astype(np.int32)

    def encode_parts(self, text: str, starts: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a text whose parts (words) begin at known characters.

        A token belongs to the part of its first character that is no white space; a part of which the tokenizer keeps
        nothing (an empty one, control characters) has no token.

        Args:
          starts: the first character of each part, ascending.
        Returns:
          ids int32 [T], without special tokens, and int32 [T], the index of each token's part.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        solid = np.asarray([i for i, character in enumerate(text) if not character.isspace()], np.int64)
        begins = np.asarray([start for start, _ in encoding.offsets], np.int64)
        places = np.searchsorted(solid, begins)
        index = np.searchsorted(np.asarray(starts, np.int64), np.append(solid, -1)[places], side="right") - 1
        return np.asarray(encoding.ids, np.int32), index.astype(np.int32)

    def frame(
        self, ids: np.ndarray, *, max_length: int | None = None, stride: int | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Puts special tokens around the tokens of a text: one model input or, with `stride`, overlapping windows.

        Args:
          ids: int32 [T], without special tokens.
          max_length: most tokens, special ones included; without `stride`, a longer text loses its end.
          stride: tokens that neighboring windows share.
        Returns:
          Of each input the ids and, for each of them, its place in `ids`, -1 for special tokens; int32 each.
        Raises:
          UserError: `max_length` leaves no room for text, or `stride` none for a window to move on.
        """
        layout = TokenLayout.from_backend(self._backend, 1, True)
        length = sys.maxsize if max_length is None else layout.text_length(max_length, stride)
        places = np.arange(len(ids), dtype=np.int32)
        if len(ids) <= length:
            pieces = [(places,)]
        elif stride is None:
            pieces = [truncate((places,), length, self._cuts_left)]
        else:
            pieces = windows((places,), length, stride)
        around = [np.full(len(affix), -1, np.int32) for affix in self.special_token_affixes]
        return [(layout.fill((ids[piece],))[0], np.concatenate([around[0], piece, around[1]])) for (piece,) in pieces]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a text, and says which of its characters each token stands for.

        Returns:
          ids: int32 [T], without special tokens.
          offsets: int64 [T, 2], begin and end (exclusive) in the characters of `text` as it is given, before any
            normalization, without white space around them. Pieces of one character share its range; a token of white
            space has an empty range.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        return np.asarray(encoding.ids, np.int32), character_offsets(text, encoding.tokens, encoding.offsets)

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the ids of a text to continue: with the special tokens before a text (Llama's <s>), without those
        after it."""
        [[encoded]] = self.encode([text], special_tokens=False)
        before, _ = self.special_token_affixes
        return [*map(int, before), *map(int, encoded.ids)]

    def continuation(self, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> str:
        """Returns the text that new tokens add to a prompt.

        Both are decoded together, since a token's text may depend on the token before it.
        """
        before = self.decode(prompt_ids)
        whole = self.decode([*prompt_ids, *new_ids])
        return whole[len(before) :] if whole.startswith(before) else self.decode(new_ids)

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Returns the vocabulary entry of each id; `<id 31999>` for one that the vocabulary does not use."""
        return [self._backend.id_to_token(int(i)) or f"<id {int(i)}>" for i in ids]

    def num_bytes(self, token: int) -> int:
        """Returns the UTF-8 bytes of the text that a token at the beginning of a text stands for; 0 of a special one.

        A byte-level entry has a character for each byte; where an entry folds case or accents, its own bytes count.
        """
        if token in self.special_ids:
            return 0
        text = self.decode([token])
        if "\ufffd" not in text:
            return len(text.encode())
        entry = self.tokens([token])[0]
        return 1 if re.fullmatch("<0x[0-9A-F]{2}>", entry) else len(entry)

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens, ascending, those without a role ("<extra_id_0>") included."""
        added = self._backend.get_added_tokens_decoder()
        named = (getattr(self, f"{role}_id") for role in ROLES)
        return tuple(sorted({i for i, token in added.items() if token.special} | {i for i in named if i is not None}))

    @cached_property
    def pair_layout(self) -> TokenLayout:
        """Where two texts and the special tokens around them stand in a model input."""
        return TokenLayout.from_backend(self._backend, 2, True)

    @cached_property
    def special_token_affixes(self) -> tuple[np.ndarray, np.ndarray]:
        """int32 ids of the special tokens that go before and after a single text."""
        parts = TokenLayout.from_backend(self._backend, 1, True).parts
        place = next(i for i, part in enumerate(parts) if not isinstance(part, np.ndarray))
        empty = np.zeros(0, np.int32)
        before, after = parts[:place], parts[place + 1 :]
        return np.concatenate([empty, *before]), np.concatenate([empty, *after])

    def id(self, token: str) -> int | None:
        """Returns the id of a vocabulary entry; None for one that the vocabulary lacks."""
        return self._backend.token_to_id(token)

    def padding_id(self, model_id: int | None) -> int | None:
        """Returns the special token that fills batches: its own, the model's, EOS or <unk>; None: it has none of these.

        Args:
          model_id: the one that the model's config names.
        """
        if self.pad_id is not None:
            return self.pad_id
        return next((i for i in (model_id, self.eos_id, self.unk_id) if i in self.special_ids), None)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides ids: equal after `save` and `load_tokenizer`."""
        if self._files.target is None:
            rules = json.loads(self._backend.to_str())
            del rules["version"]
        else:
            rules = {name: hashlib.sha256(content).hexdigest() for name, content in self._files.copies.items()}
        parts = [rules, self._files.roles, self._cuts_left, *(["split"] if self._backend.encode_special_tokens else [])]
        if self._files.target is self._backend:  # of the same files, another way to split
            parts.append("target")
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def splitting(self, special_tokens: bool) -> Tokenizer:
        """Returns this tokenizer, to be used in its place, reading the spelling of special tokens in texts otherwise.

        Args:
          special_tokens: as any other characters, split into tokens; false: as these tokens, as Transformers does.
        """
        config = {**self._files.config, "split_special_tokens": special_tokens}
        return Tokenizer(dataclasses.replace(self._files, config=config))

    def framed_by(self, before: np.ndarray, after: np.ndarray) -> Tokenizer:
        """Returns this tokenizer with these special tokens around a text, or around a pair as a whole.

        Marian's stays as it is: it is read from its vocabulary files, which name none.

        Args:
          before, after: int32 ids.
        """
        new, known = [before.tolist(), after.tolist()], [part.tolist() for part in self.special_token_affixes]
        if new == known or self._files.target is not None:
            return self
        first, last = map(self.tokens, new)
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.post_processor = TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", "$B", *last],
            special_tokens=sorted({*zip([*first, *last], [*new[0], *new[1]], strict=True)}),
        )
        return Tokenizer(dataclasses.replace(self._files, backend=backend))

    @cached_property
    def target(self) -> Tokenizer:
        """The tokenizer of texts that a model writes: this one, unless these are split otherwise (Marian)."""
        if self._files.target is None or self._files.target is self._backend:
            return self
        return Tokenizer(dataclasses.replace(self._files, backend=self._files.target))

    def save(self, directory: Path, model: ModelSide | None = None) -> None:
        """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json, and vocabulary files as found.

        Marian's two ways to split have no tokenizer.json: Transformers, too, reads them from the vocabulary files.

        Args:
          model: the one that the tokenizer is exported with; gives it a padding token, too. None: saved by itself.
        """
        roles = {f"{role}_token": token for role, token in self._files.roles.items()}
        if model is not None and (pad_id := self.padding_id(model.pad_id)) is not None:
            roles["pad_token"] = self.tokens([pad_id])[0]
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        if self.cls_id is None or not TokenLayout.from_backend(self._backend, 2, True).kinds.any():
            inputs.remove("token_type_ids")
        config = saved_config(self._files.config, roles, inputs, model)
        if self._files.target is not None:  # no tokenizer.json holds two ways to split
            config["tokenizer_class"] = "MarianTokenizer"
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.copies.items():
            (directory / name).write_bytes(content)
        if self._files.target is None:
            (directory / "tokenizer.json").write_text(self._backend.to_str(pretty=True), "utf-8")
        for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", roles)):
            (directory / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")

    @property
    def _cuts_left(self) -> bool:
        return self._files.config.get("truncation_side") == "left"


def load_tokenizer(path: Path) -> Tokenizer:
    """Loads a Hugging Face tokenizer directory.

    Tried in turn: tokenizer.json; vocab.txt (WordPiece); vocab.json + merges.txt (byte-level BPE); spiece.model,
    tokenizer.model or sentencepiece.bpe.model. SentencePiece models give the ids of the sentencepiece library.

    Raises:
      UserError: no tokenizer files in the directory, or damaged ones.
    """
    return Tokenizer(files.read(Path(path)))
