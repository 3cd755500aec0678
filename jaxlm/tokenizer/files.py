"""Reads a Hugging Face tokenizer directory, in any of its formats, into one `tokenizers` backend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

from jaxlm.errors import UserError
from jaxlm.local_paths import check_fetched
from jaxlm.tokenizer import marian
from jaxlm.tokenizer.added_tokens import (
    add_token,
    extra_tokens,
    later_tokens,
    mark_special,
    merged_config,
    named_tokens,
)
from jaxlm.tokenizer.damage import quiet_panics, refused_if_damaged
from jaxlm.tokenizer.declared import Declared, declared
from jaxlm.tokenizer.families import TokenizerFamily, guess_family, post_processor
from jaxlm.tokenizer.layout import TokenLayout
from jaxlm.tokenizer.reading import read_json
from jaxlm.tokenizer.settings import check_settings, follow_config
from jaxlm.tokenizer.vocabulary_files import SENTENCEPIECE, from_vocabulary, remade

_KEPT = ("vocab.txt", "vocab.json", "merges.txt", *SENTENCEPIECE, *marian.SIDES, "chat_template.jinja")
_LARGEST_ID = 2**27
_TRIED = ("", "a", " The Straße\n\t costs 5.00 €?", "今天 e\u0301 \U0001f642 \U0010ffff")


@dataclass(frozen=True)
class TokenizerFiles:
    """Contents of a directory: the backend, role -> token, tokenizer_config.json, and files to copy as they are.

    `target` is the backend of texts that are written, where these are split otherwise (Marian): the files alone then
    say what the tokenizer is.
    """

    backend: tokenizers.Tokenizer
    roles: Mapping[str, str]
    config: Mapping[str, Any]
    copies: Mapping[str, bytes] = field(default_factory=dict)
    target: tokenizers.Tokenizer | None = None


def read(directory: Path) -> TokenizerFiles:
    """Reads the first of: tokenizer.json; vocab.txt; vocab.json + merges.txt; a SentencePiece model. Marian's have two
    SentencePiece models.

    Raises:
      UserError: no tokenizer file, a damaged one, or one whose tokenizer class is not known here.
    """
    for path in sorted(directory.glob("*")):
        if path.suffix in (".json", ".txt", ".model", ".spm"):
            check_fetched(path)
    with refused_if_damaged(directory), quiet_panics():
        source = _read(directory)
        _try(source, directory)
    return source


def _read(directory: Path) -> TokenizerFiles:
    config = read_json(directory / "tokenizer_config.json")
    check_settings(config, str(directory / "tokenizer_config.json"))
    found = declared(config, read_json(directory / "config.json"), str(directory))
    merged = merged_config(config, read_json(directory / "special_tokens_map.json"))
    try:
        named, extra = named_tokens(merged), extra_tokens(merged)
        later = later_tokens(merged, read_json(directory / "added_tokens.json"), found.family)
    except ValueError as error:
        raise UserError(f"{directory}: special or added tokens: {error}") from error

    family, target = found.family, None
    if family is not None and family.name == "marian":
        backend, target = marian.read(directory, config, _token(named, "unk", family))
        extra += marian.language_codes(backend)
        around = family
    elif (directory / "tokenizer.json").is_file():
        backend = _from_json(directory / "tokenizer.json", found, config)
        if family is None and not named:
            family = guess_family(backend)
        # A generic class puts nothing around a text that its tokenizer.json does not.
        around = found.family if found.name else family
    else:
        backend, family = from_vocabulary(directory, found, config, named)
        around = family

    if found.family is not None:
        extra += [AddedToken(token, special=True, normalized=False) for token in found.family.further]
    roles: dict[str, str] = {}
    for side in (backend,) if target is None else (backend, target):
        _add_tokens(side, directory, later)
        roles = mark_special(side, family, named, extra)
        if (processor := post_processor(around, side, roles, config)) is not None:
            side.post_processor = processor
    copies = {name: (directory / name).read_bytes() for name in _KEPT if (directory / name).is_file()}
    return TokenizerFiles(backend, roles, config, copies, target)


def _token(named: Mapping[str, AddedToken | None], role: str, family: TokenizerFamily) -> str:
    token = named.get(role)
    return family.roles[role] if token is None else token.content


def _from_json(path: Path, found: Declared, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    rules = read_json(path)
    model = rules.get("model")
    try:
        follow_config(rules, found, config)
        backend = tokenizers.Tokenizer.from_str(json.dumps(rules))
        if isinstance(model, dict) and isinstance(model.get("vocab"), list):
            # Unigram scores again: the library's JSON reader may change their last bit, Python's does not.
            scores = [(piece, score) for piece, score in model["vocab"]]
            backend.model = models.Unigram(scores, model.get("unk_id"), bool(model.get("byte_fallback")))
        remade(backend, found.family, config)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path}: not a valid tokenizer.json ({error}); copy or download it again") from error
    # Many published files carry the settings of the run that saved them.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _add_tokens(backend: tokenizers.Tokenizer, directory: Path, tokens: Mapping[int, AddedToken]) -> None:
    """Adds the tokens that were added after training, and checks that they get the ids in the files."""
    for i, token in sorted(tokens.items()):
        add_token(backend, token)
        found = backend.token_to_id(token.content)
        if found != i:
            raise UserError(
                f"{directory}: added token {token.content!r} should have id {i}, but the vocabulary gives it {found}; "
                "the vocabulary file and the added tokens do not belong together"
            )


def _try(source: TokenizerFiles, directory: Path) -> None:
    """Encodes some texts: much damage shows only then.

    Raises:
      UserError: a vocabulary without entries, or with ids that no model has.
    """
    ids = source.backend.get_vocab().values()
    if not ids or max(ids) > _LARGEST_ID:
        found = f"an id of {max(ids)}" if ids else "no entry"
        raise UserError(f"{directory}: the vocabulary has {found}; expected ids from 0 to at most {_LARGEST_ID}")
    for num_texts in (1, 2):
        TokenLayout.from_backend(source.backend, num_texts, True)
    for text in _TRIED:
        source.backend.decode(source.backend.encode(text, add_special_tokens=False).ids)
