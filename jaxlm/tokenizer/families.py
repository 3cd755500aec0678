"""What a newly trained tokenizer takes from a model family: special tokens, their ids and roles, and where they go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken

from jaxlm.errors import UserError, did_you_mean
from jaxlm.tokenizer import special_tokens
from jaxlm.tokenizer.files import TokenizerFiles
from jaxlm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Family:
    """Special tokens for a new vocabulary. `name` is one of `special_tokens.STYLES`, which says what goes where."""

    name: str
    aliases: tuple[str, ...]
    """Model families that use the same tokens."""
    tokens: tuple[str, ...]
    """Ids 0, 1, ..."""
    extra_ids: int = 0
    """T5's sentinels `<extra_id_i>`, at the end, the highest number first."""


FAMILIES = {
    family.name: family
    for family in (
        Family("bert", ("distilbert", "electra", "mobilebert"), ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")),
        Family("roberta", ("bart", "longformer"), ("<s>", "<pad>", "</s>", "<unk>", "<mask>")),
        Family("xlm-roberta", (), ("<s>", "<pad>", "</s>", "<unk>")),
        Family("t5", ("mt5",), ("<pad>", "</s>", "<unk>"), extra_ids=100),
        Family("llama", ("mistral",), ("<unk>", "<s>", "</s>")),
        Family("gpt2", (), ("<|endoftext|>",)),
    )
}

CHOICES = {
    "wordpiece": ("bert",),
    "unigram": ("t5", "llama", "xlm-roberta"),
    "bpe": ("llama", "t5", "xlm-roberta"),
    "byte_bpe": ("gpt2", "roberta", "bert", "t5", "llama"),
    "char": ("gpt2", "bert", "roberta", "t5", "llama"),
}
"""The families of each type of tokenizer, its default first."""


def family_of(kind: str, name: str | None) -> Family:
    """The family called `name` (absent: the default) for tokenizers of type `kind`; UserError where it has none."""
    choices = [FAMILIES[choice] for choice in CHOICES[kind]]
    if name is None:
        return choices[0]
    for family in choices:
        if name in (family.name, *family.aliases):
            return family
    known = [alias for family in choices for alias in (family.name, *family.aliases)]
    hint = did_you_mean(name, known)
    raise UserError(f"family: no special tokens {name!r} for type {kind}; expected {', '.join(known)}{hint}")


def sentinels(family: Family) -> list[str]:
    return [f"<extra_id_{i}>" for i in reversed(range(family.extra_ids))]


def assemble(
    backend: tokenizers.Tokenizer,
    family: Family,
    *,
    config: Mapping[str, object] | None = None,
    copies: Mapping[str, bytes] | None = None,
    unk: str | None = None,
) -> Tokenizer:
    """A tokenizer over a backend whose vocabulary begins with the family's tokens.

    Args:
      backend: gets the sentinels and what puts special tokens around texts.
      family: its convention.
      config: further entries of tokenizer_config.json.
      copies: further files, kept beside tokenizer.json.
      unk: a token for what the vocabulary lacks, in place of the family's.
    """
    style = special_tokens.STYLES[family.name]
    named = {} if unk is None else {"unk": special_tokens.added_token(unk)}
    roles = special_tokens.mark_special(backend, style, named, {})
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in sentinels(family)])
    processor = special_tokens.post_processor(style, backend, roles, {})
    if processor is not None:
        backend.post_processor = processor
    return Tokenizer(TokenizerFiles(backend, roles, dict(config or {}), dict(copies or {})))
