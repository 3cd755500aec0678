"""Special tokens of a backend: which role has which token, as the files of a tokenizer say or its family has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken

from jaxlm.tokenizer.families import TokenizerFamily

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""In the order in which Transformers adds missing ones."""

_EXTRA = ("extra_special_tokens", "additional_special_tokens")


def merged_config(config: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
    """Returns tokenizer_config.json with what special_tokens_map.json changes of it, as Transformers merges them.

    The map counts first, but not beside an `added_tokens_decoder`.
    """
    config = dict(config)
    if config.get("additional_special_tokens") and not config.get("extra_special_tokens"):
        config["extra_special_tokens"] = config.pop("additional_special_tokens")
    return {**config, **({} if "added_tokens_decoder" in config else special)}


def named_tokens(config: Mapping[str, Any]) -> dict[str, AddedToken | None]:
    """Returns role -> token as `merged_config` names it; None: declared absent.

    Raises:
      ValueError: a token that is neither text nor an object with it.
    """
    given = {role: config[f"{role}_token"] for role in ROLES if f"{role}_token" in config}
    return {role: None if value is None else added_token(value) for role, value in given.items()}


def extra_tokens(config: Mapping[str, Any]) -> list[AddedToken]:
    """Returns special tokens without a role, in their order.

    Raises:
      ValueError: a token that is neither text nor an object with it.
    """
    values = [value for key in _EXTRA for value in _listed(config, key)]
    usual = {f"{role}_token" for role in ROLES}
    values += [v for key, v in config.items() if key.endswith("_token") and key not in usual and isinstance(v, str)]
    return [added_token(value) for value in values]


def _listed(config: Mapping[str, Any], key: str) -> list[Any]:
    extra = config.get(key) or ()
    if not isinstance(extra, (list, tuple, Mapping)):
        raise ValueError(f"{key}: expected a list, found {extra!r:.60}")
    return list(extra.values()) if isinstance(extra, Mapping) else list(extra)


def later_tokens(
    config: Mapping[str, Any], listed: Mapping[str, Any], family: TokenizerFamily | None
) -> dict[int, AddedToken]:
    """Returns id -> token of what was added after training.

    A token of added_tokens.json is special where it has a role, or tokenizer_config.json lists it as special; not where
    special_tokens_map.json alone lists it.

    Args:
      config: the merged one; its `added_tokens_decoder` counts first.
      listed: added_tokens.json, token -> id.
      family: whose roles have the usual tokens where the config names none.
    Raises:
      ValueError: ids that are no whole numbers, tokens that are no text, or two tokens with one id.
    """
    roles = named_tokens(config)
    usual = {} if family is None else {role: token for role, token in family.roles.items() if role not in roles}
    named = {*usual.values(), *(token.content for token in roles.values() if token is not None)}
    if "added_tokens_decoder" in config:
        entries = config["added_tokens_decoder"]
        if not isinstance(entries, Mapping):
            raise ValueError(f"added_tokens_decoder: expected an object, found {entries!r:.60}")
        tokens = {_id(i): added_token(entry, special=False) for i, entry in entries.items()}
        for i, entry in entries.items():
            if tokens[_id(i)].content in named:
                tokens[_id(i)] = added_token({**entry, "special": True} if isinstance(entry, Mapping) else entry)
        return tokens
    named |= {added_token(value).content for value in _listed(config, _EXTRA[0])}
    tokens = {}
    for text, i in listed.items():
        if _id(i) in tokens:
            raise ValueError(f"added_tokens.json: two tokens have the id {i}")
        tokens[_id(i)] = AddedToken(text, special=text in named, normalized=text not in named)
    return tokens


def mark_special(
    backend: tokenizers.Tokenizer,
    family: TokenizerFamily | None,
    named: Mapping[str, AddedToken | None],
    extra: Sequence[AddedToken] = (),
) -> dict[str, str]:
    """Marks special tokens in the backend, and adds those that the config names and the vocabulary lacks.

    Args:
      named: role -> token as the files name it; None: declared absent.
      extra: special tokens without a role.
    Returns:
      Role -> token.
    """
    roles = {}
    for role in ROLES:
        token = named.get(role)
        if role not in named and family is not None and role in family.roles:
            usual = family.roles[role]
            if family.adds_missing or backend.token_to_id(usual) is not None:
                # The mask of these models stands for a word with the space before it.
                token = AddedToken(usual, special=True, normalized=False, lstrip=usual == "<mask>")
        if token is not None:
            add_token(backend, token)
            roles[role] = token.content
    for token in extra:
        add_token(backend, token)
    return roles


def added_token(value: Any, *, special: bool = True) -> AddedToken:
    """Returns a token as the JSON files write it: its text, or an object with flags.

    Raises:
      ValueError: anything else.
    """
    flags: dict[str, Any] = {"special": special}
    if isinstance(value, str):
        flags["normalized"], text = not special, value
    else:
        text = value.get("content") if isinstance(value, Mapping) else None
        if not isinstance(text, str) or not text:
            raise ValueError(f"expected the text of a token, or an object with its content; found {value!r:.60}")
        known = ("special", "single_word", "lstrip", "rstrip", "normalized")
        flags |= {key: bool(value[key]) for key in known if key in value}
    return AddedToken(text, **flags)


def _id(value: Any) -> int:
    text = value if isinstance(value, str) else str(value) if type(value) is int else ""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"added tokens: expected an id, found {value!r:.60}")
    return int(text)


def add_token(backend: tokenizers.Tokenizer, token: AddedToken) -> None:
    """Makes the backend find the token in any text before it splits the rest; a new token gets the next id."""
    if token.content not in {added.content for added in backend.get_added_tokens_decoder().values()}:
        backend.add_tokens([token])
