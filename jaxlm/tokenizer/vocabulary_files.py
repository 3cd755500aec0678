"""Backends from vocabulary files, where a directory has no tokenizer.json: vocab.txt, merges.txt, SentencePiece."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from jaxlm.errors import UserError
from jaxlm.tokenizer import sentencepiece
from jaxlm.tokenizer.declared import Declared, check_readable
from jaxlm.tokenizer.families import FAMILIES, PEGASUS, TokenizerFamily, guess_family
from jaxlm.tokenizer.reading import read_text
from jaxlm.tokenizer.settings import ALBERT_UNK, albert_steps, bert_normalizer, deberta_steps, seq2seq_steps

SENTENCEPIECE = {
    FAMILIES[name].sentencepiece_file: FAMILIES[name] for name in ("t5", "llama", "xlm-roberta", "deberta-v2")
}
"""Name of a SentencePiece model -> the family that usually has it."""
_BYTE_LEVEL = ("vocab.json", "merges.txt")
_FORMATS = ("tokenizer.json", "vocab.txt", " + ".join(_BYTE_LEVEL), *SENTENCEPIECE)


def from_vocabulary(
    directory: Path, found: Declared, config: Mapping[str, Any], named: Mapping[str, AddedToken | None]
) -> tuple[tokenizers.Tokenizer, TokenizerFamily]:
    """Reads the first of: vocab.txt; vocab.json + merges.txt; a SentencePiece model.

    Args:
      found: what the directory declares; of a family that is known, only its own kind of file is read.
      config: tokenizer_config.json.
      named: role -> token as the files name it.
    Returns:
      A backend without special tokens, and its family.
    Raises:
      UserError: no such file, a damaged one, or a tokenizer class that is not known here.
    """
    present = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    model = next((name for name in SENTENCEPIECE if name in present), None)
    byte_level = all(name in present for name in _BYTE_LEVEL)
    if "vocab.txt" not in present and not byte_level and model is None:
        listed = ", ".join(present[:20]) or "nothing"
        raise UserError(f"{directory}: no tokenizer; looked for {', '.join(_FORMATS)}; found {listed}")
    check_readable(found, str(directory))
    family = found.family
    readable = {
        "vocab.txt": "vocab.txt" in present,
        _FORMATS[2]: byte_level,
        "a SentencePiece model": model is not None,
    }
    if family is not None and not readable[wanted := _format(family)]:
        by = f"the class {found.name}" if found.name else f"the model type {found.model_type}"
        listed = " and ".join(name for name, there in readable.items() if there)
        raise UserError(
            f"{directory}: {by} of {found.file} is read from tokenizer.json or {wanted}; found {listed}: the files do "
            "not belong together"
        )
    kind = _format(family) if family is not None else next(name for name, there in readable.items() if there)
    if kind == "vocab.txt":
        family = family or FAMILIES["bert"]
        return _word_piece(directory / "vocab.txt", family, config, named), family
    if kind == _FORMATS[2]:
        backend = _byte_level(directory, config)
        return backend, family or guess_family(backend) or FAMILIES["gpt2"]
    assert model is not None
    family = family or SENTENCEPIECE[model]
    extra_ids = config.get("extra_ids") if family.name == "t5" else 0
    options: dict[str, Any] = {"legacy": config.get("legacy") is not False}
    if family.name == "pegasus":
        options["inserted"] = PEGASUS
    if family.name in ("xlm-roberta", "mbart", "mbart50"):
        options["fairseq"] = family.further
    if family.name in ("llama", "xlm-roberta"):
        options["prefix"] = config.get("add_prefix_space")
    options["plain"] = family.name in ("albert", "deberta-v2", "mbart", "mbart50", "pegasus")
    backend = sentencepiece.read(directory / model, extra_ids=extra_ids, **options)
    unk = named.get("unk")
    unknown = family.roles["unk"] if unk is None else unk.content
    if family.name == "albert" and backend.token_to_id(unknown) != ALBERT_UNK:
        raise UserError(
            f"{directory / model}: {unknown} has the id {backend.token_to_id(unknown)}; expected {ALBERT_UNK}, as in "
            "every model of ALBERT; unk_token of tokenizer_config.json names another token"
        )
    return remade(backend, family, config), family


def remade(
    backend: tokenizers.Tokenizer, family: TokenizerFamily | None, config: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    """Returns the backend with the rules that a class of Transformers makes anew around any vocabulary."""
    steps = {}
    if family is not None and family.name == "deberta-v2":
        steps = deberta_steps(config)
    elif family is not None and family.name == "mpnet":
        steps = _bert_steps(**bert_normalizer(config))
    elif family is not None and family.name == "albert":
        steps = albert_steps(config, backend.normalizer)
    elif family is not None and family.name in ("mbart", "mbart50", "pegasus"):
        steps = seq2seq_steps(family.name, backend.normalizer)
    for part, step in steps.items():
        setattr(backend, part, step)
    return backend


def bert_backend(vocab: Mapping[str, int], unk: str, *, lowercase: bool, **normalizer: Any) -> tokenizers.Tokenizer:
    """Returns WordPiece over BERT's normalizer and pre-tokenizer, without special tokens."""
    backend = tokenizers.Tokenizer(models.WordPiece(dict(vocab), unk_token=unk))
    for part, step in _bert_steps(lowercase=lowercase, **normalizer).items():
        setattr(backend, part, step)
    return backend


def _bert_steps(**normalizer: Any) -> dict[str, Any]:
    return {
        "normalizer": normalizers.BertNormalizer(**normalizer),
        "pre_tokenizer": pre_tokenizers.BertPreTokenizer(),
        "decoder": decoders.WordPiece(),
    }


def _format(family: TokenizerFamily) -> str:
    if family.sentencepiece_file:
        return "a SentencePiece model"
    return "vocab.txt" if family.name in ("bert", "mpnet") else _FORMATS[2]


def _word_piece(
    path: Path, family: TokenizerFamily, config: Mapping[str, Any], named: Mapping[str, AddedToken | None]
) -> tokenizers.Tokenizer:
    vocab = {token: i for i, token in enumerate(read_text(path).removesuffix("\n").split("\n"))}
    tokens = {}
    for role in ("unk", "cls", "sep", "pad"):
        token = named.get(role)
        tokens[role] = token.content if token is not None else family.roles[role]
        if tokens[role] not in vocab:
            raise UserError(
                f"{path}: no {tokens[role]} among its {len(vocab)} lines; expected one token to a line, special tokens "
                f"included; for another name set {role}_token in tokenizer_config.json"
            )
    return bert_backend(vocab, tokens["unk"], **bert_normalizer(config))


def _byte_level(directory: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    vocab, merges = (directory / name for name in _BYTE_LEVEL)
    try:
        model = models.BPE.from_file(str(vocab), str(merges))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{vocab} and {merges.name}: not a byte-level BPE vocabulary ({error})") from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    backend.decoder = decoders.ByteLevel()
    return backend
