"""Settings of tokenizer_config.json: their types, and what they change of a tokenizer.json, as in Transformers."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from jaxlm.errors import UserError
from jaxlm.tokenizer.declared import Declared

_SWITCHES = (
    "add_bos_token", "add_eos_token", "add_prefix_space", "do_lower_case", "keep_accents", "legacy", "split_by_punct",
    "split_special_tokens", "strip_accents", "tokenize_chinese_chars",
)  # fmt: skip
_SIDES = ("padding_side", "truncation_side")
ALBERT_UNK = 1
"""Id of AlbertTokenizer's token for what no piece spells."""
FAIRSEQ_UNK = 3
"""That of mBART's."""
_MOST_EXTRA_IDS = 100_000


def check_settings(config: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a setting of another type than it has in Transformers, or text that is no Unicode."""
    try:
        json.dumps(config, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: a text in it holds half of a surrogate pair ({error.reason})") from error

    def expect(good: bool, key: str, wanted: str) -> None:
        if not good:
            raise UserError(f"{where}: {key}: expected {wanted}, found {config[key]!r:.60}")

    for key, value in config.items():
        if value is None:
            continue
        if key in _SWITCHES:
            expect(isinstance(value, bool), key, "true or false")
        elif key in _SIDES:
            expect(value in ("left", "right"), key, '"left" or "right"')
        elif key == "extra_ids":
            good = type(value) is int and 0 <= value <= _MOST_EXTRA_IDS
            expect(good, key, f"a whole number up to {_MOST_EXTRA_IDS}")
        elif key == "model_max_length":
            expect(type(value) in (int, float) and value > 0, key, "a number of tokens")


def bert_normalizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `BertNormalizer` that BertTokenizer takes from its config, or its defaults."""
    defaults = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    lowercase, strip_accents, chinese = (config.get(key, default) for key, default in defaults.items())
    return {
        "lowercase": lowercase is not False,
        "strip_accents": strip_accents,
        "handle_chinese_chars": chinese is not False,
    }


def deberta_steps(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the normalizer, pre-tokenizer and decoder that DebertaV2Tokenizer makes from its config, whatever its
    files say."""
    lower = [normalizers.Lowercase()] if config.get("do_lower_case") else []
    spaces = [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC(), normalizers.Strip(False, True)]
    scheme = "first" if config.get("add_prefix_space") is False else "always"
    punctuation = [pre_tokenizers.Punctuation("isolated")] if config.get("split_by_punct") else []
    return {
        "normalizer": normalizers.Sequence([*lower, *spaces]),
        "pre_tokenizer": pre_tokenizers.Sequence([*punctuation, pre_tokenizers.Metaspace("▁", scheme)]),
        "decoder": decoders.Metaspace("▁", scheme),
    }


def albert_steps(config: Mapping[str, Any], normalizer: Any) -> dict[str, Any]:
    """Returns the normalizer, pre-tokenizer and decoder that AlbertTokenizer makes from its config, whatever its files
    say.

    Args:
      normalizer: that of the files, whose table of characters is kept; None: there is none.
    """
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not config.get("keep_accents"):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if config.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    steps += _table(normalizer)
    scheme = "always" if config.get("add_prefix_space", True) else "never"
    return {
        "normalizer": normalizers.Sequence(steps),
        "pre_tokenizer": pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", scheme)]
        ),
        "decoder": decoders.Metaspace("▁", scheme),
    }


def seq2seq_steps(family: str, normalizer: Any) -> dict[str, Any]:
    """Returns the normalizer, pre-tokenizer and decoder that the tokenizer classes of mBART, mBART-50 and Pegasus make,
    whatever their files say.

    Args:
      normalizer: that of the files, whose table of characters is kept, but for mBART; None: there is none.
    """
    mark = pre_tokenizers.Metaspace("▁", "always")
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    table = _table(normalizer)
    if family == "pegasus" and not table:
        table = [normalizers.Replace("\n", " ")]
    return {
        "normalizer": None if family == "mbart" else normalizers.Sequence([*table, spaces]),
        "pre_tokenizer": (
            pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), mark]) if family == "mbart" else mark
        ),
        "decoder": decoders.Metaspace("▁", "always"),
    }


def _table(normalizer: Any) -> list[Any]:
    """The table of characters of a normalizer, if it has one."""
    rules = {} if normalizer is None else {"normalizer": json.loads(normalizer.__getstate__())}
    tables = [step for step in _steps(rules, "normalizer") if step.get("type") == "Precompiled"]
    return [normalizers.Precompiled(base64.b64decode(step["precompiled_charsmap"])) for step in tables[:1]]


def follow_config(rules: dict[str, Any], found: Declared, config: Mapping[str, Any]) -> None:
    """Changes the contents of a tokenizer.json where a class of Transformers goes by tokenizer_config.json instead.

    BertTokenizer makes its normalizer anew; byte-level classes decide by `add_prefix_space` (absent: no) whether a text
    begins with a space, SentencePiece's by the same key where it is there. Of DeBERTa's and MPNet's only the
    vocabulary counts, of ALBERT's, mBART's and Pegasus' little else (`vocabulary_files.remade`). A generic class
    changes nothing.
    """
    name = "" if found.family is None else found.family.name
    normalizer = rules.get("normalizer")
    if name == "bert" and isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        rules["normalizer"] = {**normalizer, **bert_normalizer(config)}
    if name in ("deberta-v2", "mpnet", "mbart", "mbart50", "pegasus"):
        rules["post_processor"] = None
    if name in ("mbart", "mbart50") and isinstance(rules.get("model"), dict):
        rules["model"]["unk_id"] = FAIRSEQ_UNK
    if name == "albert" and isinstance(rules.get("model"), dict):
        rules["model"]["unk_id"] = ALBERT_UNK
    space = config.get("add_prefix_space")
    if found.is_byte_level:
        _set_prefix(rules, bool(space), "always")
    elif name in ("xlm-roberta", "llama") and space is not None:
        _set_prefix(rules, space, "first" if name == "llama" else "always")


def _set_prefix(rules: dict[str, Any], space: bool, scheme: str) -> None:
    """Turns the space before a text on or off.

    Args:
      scheme: Metaspace's, where there was none.
    """
    for step in (*_steps(rules, "pre_tokenizer"), *_steps(rules, "decoder"), *_steps(rules, "post_processor")):
        if step.get("type") in ("ByteLevel", "RobertaProcessing") and "add_prefix_space" in step:
            step["add_prefix_space"] = space
        if step.get("type") == "Metaspace":
            step.pop("add_prefix_space", None)
            old = step.get("prepend_scheme", "always")
            step["prepend_scheme"] = (old if old != "never" else scheme) if space else "never"
    if not space:
        for key in ("normalizer", "decoder"):
            _drop(rules, key, {"type": "Prepend"} if key == "normalizer" else {"type": "Strip", "content": " "})


def _steps(rules: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The parts of a normalizer, pre-tokenizer, post-processor or decoder."""
    part = rules.get(key)
    if not isinstance(part, dict):
        return []
    inner = next(
        (part[name] for name in ("pretokenizers", "decoders", "processors", "normalizers") if name in part), None
    )
    return [step for step in inner if isinstance(step, dict)] if isinstance(inner, list) else [part]


def _drop(rules: dict[str, Any], key: str, like: Mapping[str, Any]) -> None:
    part = rules.get(key)
    if not isinstance(part, dict):
        return
    for name in ("normalizers", "decoders"):
        if isinstance(part.get(name), list):
            part[name] = [step for step in part[name] if not _is_like(step, like)]
            return
    if _is_like(part, like):
        rules[key] = None


def _is_like(step: Any, like: Mapping[str, Any]) -> bool:
    return isinstance(step, dict) and all(step.get(key) == value for key, value in like.items())
