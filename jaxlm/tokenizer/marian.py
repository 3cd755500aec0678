"""Marian's tokenizer: two SentencePiece models, of the texts that are read and of those that are written, and one
vocabulary of both, vocab.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, NormalizedString, models, pre_tokenizers

from jaxlm.errors import UserError
from jaxlm.tokenizer import sentencepiece
from jaxlm.tokenizer.reading import read_json

SIDES = ("source.spm", "target.spm")
VOCABULARY = "vocab.json"


def read(directory: Path, config: Mapping[str, Any], unk: str) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
    """Returns the backends of texts that are read and of texts that are written, without post-processors.

    A piece that vocab.json lacks is `unk`, and so is what no piece spells, unless vocab.json has it as it stands: as in
    Transformers. These backends cannot be written to a tokenizer.json.

    Args:
      config: tokenizer_config.json.
    Raises:
      UserError: a file that is absent or damaged, or a vocabulary for each side.
    """
    if missing := [name for name in (*SIDES, VOCABULARY) if not (directory / name).is_file()]:
        raise UserError(
            f"{directory}: no {' and no '.join(missing)}; a Marian tokenizer is read from {', '.join(SIDES)} and "
            f"{VOCABULARY}"
        )
    if config.get("separate_vocabs"):
        raise UserError(f"{directory}: separate_vocabs=true is not supported; expected one vocabulary for both sides")
    path = directory / VOCABULARY
    vocab = read_json(path)
    if wrong := next((token for token, i in vocab.items() if type(i) is not int or i < 0), None):
        raise UserError(f"{path}: {wrong!r}: expected an id, found {json.dumps(vocab[wrong]):.60}")
    if unk not in vocab:
        raise UserError(f"{path}: no {unk} among its {len(vocab)} entries; unk_token of tokenizer_config.json names it")
    source, target = (_side(sentencepiece.read(directory / name), vocab, unk) for name in SIDES)
    return source, target


def language_codes(backend: tokenizers.Tokenizer) -> list[AddedToken]:
    """Returns the tokens by which a text says what it is to be translated into, as `>>fra<<`."""
    codes = [token for token in backend.get_vocab() if token.startswith(">>") and token.endswith("<<")]
    return [AddedToken(code, special=True, normalized=False) for code in sorted(codes)]


class _Pieces:
    """Splits words into the pieces of a SentencePiece model, for a vocabulary that has these by other ids."""

    def __init__(self, model: models.Model):
        self._model = model

    def pre_tokenize(self, text: Any) -> None:
        """Called by the library with what is like a `tokenizers.PreTokenizedString`."""
        text.split(self._split)

    def _split(self, index: int, word: NormalizedString) -> list[NormalizedString]:
        del index
        utf8, pieces, start = word.normalized.encode(), [], 0
        for token in self._model.tokenize(word.normalized):
            stop = start + len(utf8[slice(*token.offsets)].decode())
            pieces.append(word[start:stop])
            start = stop
        return pieces


def _side(pieces: tokenizers.Tokenizer, vocab: Mapping[str, int], unk: str) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(dict(vocab), unk_token=unk))
    backend.normalizer, backend.decoder = pieces.normalizer, pieces.decoder
    steps: list[Any] = [] if pieces.pre_tokenizer is None else [pieces.pre_tokenizer]
    steps.append(pre_tokenizers.PreTokenizer.custom(_Pieces(pieces.model)))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    own = (token for token in pieces.get_added_tokens_decoder().values() if not token.special)
    backend.add_tokens([token for token in own if token.content in vocab])
    return backend
