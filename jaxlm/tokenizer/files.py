"""Reads a Hugging Face tokenizer directory, in any of its formats, into one `tokenizers` backend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from jaxlm.errors import UserError
from jaxlm.tokenizer import sentencepiece
from jaxlm.tokenizer.added_tokens import add_token, added_token, mark_special, named_tokens
from jaxlm.tokenizer.families import FAMILIES, TokenizerFamily, guess_family, post_processor

_GENERIC_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend", "")

_SENTENCEPIECE = {FAMILIES[name].sentencepiece_file: FAMILIES[name] for name in ("t5", "llama", "xlm-roberta")}
_FORMATS = ("tokenizer.json", "vocab.txt", "vocab.json + merges.txt", *_SENTENCEPIECE)
_KEPT = ("vocab.txt", "vocab.json", "merges.txt", *_SENTENCEPIECE, "chat_template.jinja")


@dataclass(frozen=True)
class TokenizerFiles:
    """Contents of a directory: the backend, role -> token, tokenizer_config.json, and files to copy as they are."""

    backend: tokenizers.Tokenizer
    roles: Mapping[str, str]
    config: Mapping[str, Any]
    copies: Mapping[str, bytes] = field(default_factory=dict)


def read(directory: Path) -> TokenizerFiles:
    """Reads the first of: tokenizer.json; vocab.txt; vocab.json + merges.txt; a SentencePiece model.

    Raises:
      UserError: no tokenizer file, a damaged one, or one whose tokenizer class is not known here.
    """
    config = _json(directory / "tokenizer_config.json")
    named = named_tokens(config, _json(directory / "special_tokens_map.json"))
    family = _family(directory, config)

    if (directory / "tokenizer.json").is_file():
        backend = _from_json(directory / "tokenizer.json")
        if family is None and not named:
            family = guess_family(backend)
        _follow_config(backend, family, config)
    else:
        backend, family = _from_vocabulary(directory, family, config, named)

    _add_tokens(backend, directory, config)
    roles = mark_special(backend, family, named, config)
    if (processor := post_processor(family, backend, roles, config)) is not None:
        backend.post_processor = processor
    copies = {name: (directory / name).read_bytes() for name in _KEPT if (directory / name).is_file()}
    return TokenizerFiles(backend, roles, config, copies)


def bert_backend(vocab: Mapping[str, int], unk: str, *, lowercase: bool, **normalizer: Any) -> tokenizers.Tokenizer:
    """Returns WordPiece over BERT's normalizer and pre-tokenizer, without special tokens."""
    backend = tokenizers.Tokenizer(models.WordPiece(dict(vocab), unk_token=unk))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, **normalizer)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


# Family.


def _family(directory: Path, config: Mapping[str, Any]) -> TokenizerFamily | None:
    """Returns the family of the tokenizer class, else of the model's type; None where both are absent or generic."""
    model = _json(directory / "config.json")
    name = str(config.get("tokenizer_class") or model.get("tokenizer_class") or "").removesuffix("Fast")
    for family in FAMILIES.values():
        if name in family.classes or (not name and model.get("model_type") in (*family.names, *family.model_types)):
            return family
    return None


# Vocabulary files.


def _from_json(path: Path) -> tokenizers.Tokenizer:
    rules = _json(path)
    model = rules.get("model")
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(rules))
        if isinstance(model, dict) and isinstance(model.get("vocab"), list):
            # Unigram scores again: the library's JSON reader may change their last bit, Python's does not.
            scores = [(piece, score) for piece, score in model["vocab"]]
            backend.model = models.Unigram(scores, model.get("unk_id"), bool(model.get("byte_fallback")))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path}: not a valid tokenizer.json ({error}); copy or download it again") from error
    # Many published files carry the settings of the run that saved them.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _from_vocabulary(
    directory: Path,
    family: TokenizerFamily | None,
    config: Mapping[str, Any],
    named: Mapping[str, AddedToken | None],
) -> tuple[tokenizers.Tokenizer, TokenizerFamily]:
    present = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    model = next((name for name in _SENTENCEPIECE if name in present), None)
    byte_level = "vocab.json" in present and "merges.txt" in present
    if "vocab.txt" not in present and not byte_level and model is None:
        found = ", ".join(present[:20]) or "nothing"
        raise UserError(f"{directory}: no tokenizer; looked for {', '.join(_FORMATS)}; found {found}")
    name = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    if family is None and name not in _GENERIC_CLASSES:
        raise UserError(
            f"{directory}: tokenizer_config.json names the tokenizer_class {name!r}, which is read from "
            "a tokenizer.json only; make one with Transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    if "vocab.txt" in present:
        return _word_piece(directory / "vocab.txt", config, named), family or FAMILIES["bert"]
    if byte_level:
        backend = _byte_level(directory, config)
        return backend, family or guess_family(backend) or FAMILIES["gpt2"]
    assert model is not None
    family = family or _SENTENCEPIECE[model]
    extra_ids = int(config.get("extra_ids", 100)) if family.name == "t5" else 0
    legacy = config.get("legacy") is not False
    fairseq = family.name == "xlm-roberta"
    return sentencepiece.read(directory / model, fairseq=fairseq, extra_ids=extra_ids, legacy=legacy), family


def _word_piece(path: Path, config: Mapping[str, Any], named: Mapping[str, AddedToken | None]) -> tokenizers.Tokenizer:
    vocab = {token: i for i, token in enumerate(_text(path).removesuffix("\n").split("\n"))}
    tokens = {}
    for role in ("unk", "cls", "sep", "pad"):
        token = named.get(role)
        tokens[role] = token.content if token is not None else FAMILIES["bert"].roles[role]
        if tokens[role] not in vocab:
            raise UserError(
                f"{path}: no {tokens[role]} among its {len(vocab)} lines; expected one token to a line, special tokens "
                f"included; for another name set {role}_token in tokenizer_config.json"
            )
    return bert_backend(vocab, tokens["unk"], **_bert_settings(config, {"lowercase": True}))


def _byte_level(directory: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    try:
        model = models.BPE.from_file(str(vocab), str(merges))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{vocab} and {merges.name}: not a byte-level BPE vocabulary ({error})") from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    backend.decoder = decoders.ByteLevel()
    return backend


# Settings of tokenizer_config.json.


def _bert_settings(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `BertNormalizer`: the config's where it has them, else `defaults`."""
    keys = {
        "lowercase": "do_lower_case",
        "strip_accents": "strip_accents",
        "handle_chinese_chars": "tokenize_chinese_chars",
    }
    return {**defaults, **{argument: config[key] for argument, key in keys.items() if key in config}}


def _follow_config(backend: tokenizers.Tokenizer, family: TokenizerFamily | None, config: Mapping[str, Any]) -> None:
    """Applies the config of a BERT tokenizer over the normalizer of its tokenizer.json, as Transformers does."""
    normalizer = backend.normalizer
    if family is FAMILIES["bert"] and isinstance(normalizer, normalizers.BertNormalizer):
        for argument, value in _bert_settings(config, {}).items():
            setattr(normalizer, argument, value)
        backend.normalizer = normalizer


def _add_tokens(backend: tokenizers.Tokenizer, directory: Path, config: Mapping[str, Any]) -> None:
    """Adds the tokens that were added after training, and checks that they get the ids in the files."""
    added = {int(i): token for i, token in config.get("added_tokens_decoder", {}).items()}
    for token, i in _json(directory / "added_tokens.json").items():
        added.setdefault(int(i), {"content": token})
    for i, entry in sorted(added.items()):
        token = added_token(entry, special=False)
        add_token(backend, token)
        found = backend.token_to_id(token.content)
        if found != i:
            raise UserError(
                f"{directory}: added token {token.content!r} should have id {i}, but the vocabulary gives it {found}; "
                "the vocabulary file and the added tokens do not belong together"
            )


# Files.


def _json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; found {type(value).__name__}")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; tokenizer files are UTF-8 text") from error
