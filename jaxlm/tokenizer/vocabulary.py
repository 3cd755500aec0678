"""Facts of a vocabulary that pretraining reads: tokens that can be masked, that begin a word, that stand for spans."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import Tokenizer

_CONTINUES, _BEGINS = "##", ("▁", "Ġ")
"""WordPiece's mark of a token that goes on; SentencePiece's and byte-level BPE's of a space before a token."""


@dataclass(frozen=True)
class MaskingVocabulary:
    """The ids that masking reads of a tokenizer.

    Attributes:
      mask_id: the id of [MASK].
      special: bool [V], True for tokens that are never masked and never drawn as a replacement.
      continues: bool [V], True for tokens that continue the word of the token before ("##ing").
    """

    mask_id: int
    special: np.ndarray
    continues: np.ndarray


def masking_vocabulary(tokenizer: Tokenizer, kind: str) -> MaskingVocabulary:
    """Returns the part of a tokenizer that masking reads.

    Args:
      kind: `task.kind`, for the message.
    Raises:
      UserError: the tokenizer has no mask token.
    """
    if tokenizer.mask_id is None:
        raise UserError(
            f"task.kind={kind}: the tokenizer has no mask token; expected one such as [MASK] (name it as mask_token in "
            "tokenizer_config.json, or use the tokenizer of an encoder)"
        )
    special = np.zeros(tokenizer.vocab_size, bool)
    special[list(tokenizer.special_ids)] = True
    return MaskingVocabulary(tokenizer.mask_id, special, continues_word(tokenizer) & ~special)


def continues_word(tokenizer: Tokenizer) -> np.ndarray:
    """Returns bool [V], True for tokens that belong to the word of the token before them.

    In WordPiece they begin with "##"; in other vocabularies they are all tokens without the mark of a space; a
    vocabulary without such marks has none. Any vocabulary may have a few tokens that only look marked (GPT-2 has
    "####"), so the mark that most tokens have decides.
    """
    tokens = tokenizer.tokens(range(tokenizer.vocab_size))
    marked = {mark: np.asarray([token.startswith(mark) for token in tokens]) for mark in (_CONTINUES, *_BEGINS)}
    mark = max(marked, key=lambda m: int(marked[m].sum()))
    if not marked[mark].any():
        return marked[mark]
    return marked[mark] if mark == _CONTINUES else ~marked[mark]


def sentinels(tokenizer: Tokenizer) -> np.ndarray:
    """Returns the int32 ids of <extra_id_0>, <extra_id_1>, ...

    Raises:
      UserError: the tokenizer has none.
    """
    spelling = "<extra_id_{}>" if tokenizer.id("<extra_id_0>") is not None else "▁<extra_id_{}>"  # mT5 has the latter
    found = itertools.takewhile(lambda i: i is not None, (tokenizer.id(spelling.format(k)) for k in itertools.count()))
    ids = np.asarray(list(found), np.int32)
    if not ids.size:
        raise UserError(
            "task.kind=span_corruption: the tokenizer has no <extra_id_0>, <extra_id_1>, ... to stand for spans; "
            "expected one of T5's kind (train_tokenizer.py --type unigram --family t5)"
        )
    return ids
