"""Special tokens of a backend: which role has which token, as the files of a tokenizer say or its family has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken

from jaxlm.tokenizer.families import TokenizerFamily

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""In the order in which Transformers adds missing ones."""


def named_tokens(config: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, AddedToken | None]:
    """Returns role -> token as two files name it; None: declared absent.

    special_tokens_map.json counts first, but not beside an `added_tokens_decoder`, as in Transformers.

    Args:
      config: tokenizer_config.json.
      special: special_tokens_map.json.
    """
    merged = {**config, **({} if "added_tokens_decoder" in config else special)}
    given = {role: merged[f"{role}_token"] for role in ROLES if f"{role}_token" in merged}
    return {role: None if value is None else added_token(value) for role, value in given.items()}


def mark_special(
    backend: tokenizers.Tokenizer,
    family: TokenizerFamily | None,
    named: Mapping[str, AddedToken | None],
    config: Mapping[str, Any],
) -> dict[str, str]:
    """Marks special tokens in the backend, and adds those that the config names and the vocabulary lacks.

    Args:
      named: role -> token as the files name it; None: declared absent.
      config: tokenizer_config.json, for additional special tokens.
    Returns:
      Role -> token.
    """
    roles = {}
    for role in ROLES:
        token = named.get(role)
        if role not in named and family is not None and role in family.roles:
            usual = family.roles[role]
            if backend.token_to_id(usual) is not None:
                # The mask of these models stands for a word with the space before it.
                token = AddedToken(usual, special=True, normalized=False, lstrip=usual == "<mask>")
        if token is not None:
            add_token(backend, token)
            roles[role] = token.content
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = config.get(key) or ()
        for value in extra.values() if isinstance(extra, Mapping) else extra:
            add_token(backend, added_token(value))
    return roles


def added_token(value: Any, *, special: bool = True) -> AddedToken:
    """Returns a token as the JSON files write it: its text, or an object with flags."""
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=not special)
    flags = {"special": special}
    flags |= {
        key: bool(value[key]) for key in ("special", "single_word", "lstrip", "rstrip", "normalized") if key in value
    }
    return AddedToken(str(value["content"]), **flags)


def add_token(backend: tokenizers.Tokenizer, token: AddedToken) -> None:
    """Makes the backend find the token in any text before it splits the rest; a new token gets the next id."""
    if token.content not in {added.content for added in backend.get_added_tokens_decoder().values()}:
        backend.add_tokens([token])
