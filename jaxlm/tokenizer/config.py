"""The config section of a vocabulary that a run trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jaxlm.section import Section


class TokenizerTrainingConfig(Section):
    """A vocabulary learned from the training texts, before the model is made."""

    type: Literal["wordpiece", "unigram", "bpe", "byte_bpe", "char"] = "wordpiece"
    """Kind of vocabulary: WordPiece, SentencePiece unigram or BPE, byte-level BPE, or one token to a character."""
    family: str | None = None
    """Model family whose special tokens are used; absent: `bert`, `t5`, `llama`, `gpt2` by type."""
    vocab_size: int = Field(default=8000, gt=5)
    """Maximum number of entries, special tokens included; `char` keeps all characters unless this is set."""
    lowercase: bool = True
    """WordPiece: fold case and strip accents."""
    min_frequency: int = Field(default=2, gt=0)
    """WordPiece and byte-level BPE: pairs seen less often are not merged."""
