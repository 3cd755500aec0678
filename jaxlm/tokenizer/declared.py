"""Which tokenizer the files of a directory declare: its class in Transformers, and its family here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxlm.errors import UserError
from jaxlm.tokenizer.families import FAMILIES, TokenizerFamily

GENERIC = ("PreTrainedTokenizer", "TokenizersBackend", "")
"""Classes that say nothing: tokenizer.json stands as it is."""

PYTHON = frozenset(
    (
        "BartphoTokenizer", "BertGenerationTokenizer", "BertJapaneseTokenizer", "BertweetTokenizer", "BioGptTokenizer",
        "BlenderbotSmallTokenizer", "ByT5Tokenizer", "CTRLTokenizer", "CanineTokenizer", "ClvpTokenizer",
        "CpmAntTokenizer", "CpmTokenizer", "EsmTokenizer", "FSMTTokenizer", "FlaubertTokenizer",
        "GPTNeoXJapaneseTokenizer", "GPTSw3Tokenizer", "M2M100Tokenizer", "MyT5Tokenizer",
        "PLBartTokenizer", "PerceiverTokenizer", "PhobertTokenizer", "ProphetNetTokenizer", "RoCBertTokenizer",
        "SiglipTokenizer", "TapasTokenizer", "XLMTokenizer",
    )
)  # fmt: skip
"""Classes that Transformers has in Python alone: it splits words by code of theirs and reads no tokenizer.json."""

_BYTE_LEVEL_TYPES = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe")


@dataclass(frozen=True)
class Declared:
    """What tokenizer_config.json and config.json say of the tokenizer.

    Attributes:
      name: its class in Transformers, without "Fast"; "": none is named.
      file: the file that names it.
      model_type: that of config.json; "": none.
      family: of the class or, where none is named, of the model type; None: not known here, or generic.
    """

    name: str
    file: str
    model_type: str
    family: TokenizerFamily | None

    @property
    def is_byte_level(self) -> bool:
        """A class that makes its byte-level pre-tokenizer anew, whatever tokenizer.json says of it."""
        if self.family is not None:
            return self.family.name in ("roberta", "gpt2")
        return self.name == "Qwen2Tokenizer" or not self.name and self.model_type in _BYTE_LEVEL_TYPES


def declared(config: Mapping[str, Any], model: Mapping[str, Any], where: str) -> Declared:
    """Returns what the files of a directory declare.

    Args:
      config: tokenizer_config.json, whose class counts first.
      model: config.json.
      where: the directory, for errors.
    Raises:
      UserError: a class that only Python code of Transformers' can run.
    """
    file = "tokenizer_config.json" if config.get("tokenizer_class") else "config.json"
    named = config.get("tokenizer_class") or model.get("tokenizer_class") or ""
    kind = model.get("model_type") or ""
    for value, key, of in ((named, "tokenizer_class", file), (kind, "model_type", "config.json")):
        if not isinstance(value, str):
            raise UserError(f"{where}/{of}: {key}: expected a name, found {value!r:.60}")
    name = named.removesuffix("Fast")
    if name in PYTHON:
        raise UserError(
            f"{where}: {file} names the tokenizer_class {named!r}, which Transformers runs as Python code and jaxlm "
            "does not have; expected one with a tokenizer.json of its own (model.tokenizer names another tokenizer)"
        )
    for family in FAMILIES.values():
        if name in family.classes or not name and kind in (*family.names, *family.model_types):
            return Declared(name, file, kind, family)
    return Declared(name, file, kind, None)


def check_readable(found: Declared, where: str) -> None:
    """Raises UserError where vocabulary files alone, without a tokenizer.json, do not say how to split a text."""
    if found.family is not None or found.name in GENERIC and (found.name or not found.model_type):
        return
    said = f"{found.file} names the tokenizer_class {found.name!r}"
    if found.name in GENERIC:
        said = f"config.json names the model_type {found.model_type!r}"
    raise UserError(
        f"{where}: {said}, whose tokenizer is read from a tokenizer.json only; make one with Transformers: "
        "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    )
