"""Special tokens: which role has which token, by the convention of a model family, and where they go around texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from jaxlm.errors import UserError

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Special token roles, in the order in which Transformers adds missing ones."""


@dataclass(frozen=True)
class Style:
    """One convention of special tokens, and the names it goes by."""

    name: str
    classes: tuple[str, ...]
    model_types: tuple[str, ...]
    tokens: Mapping[str, str]


_FAIRSEQ = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
STYLES = {
    style.name: style
    for style in (
        Style(
            "bert",
            ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"),
            ("bert", "distilbert", "electra", "mobilebert"),
            {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
        ),
        Style("roberta", ("RobertaTokenizer", "LongformerTokenizer", "BartTokenizer"), ("roberta", "bart"), _FAIRSEQ),
        Style("xlm-roberta", ("XLMRobertaTokenizer",), ("xlm-roberta",), _FAIRSEQ),
        Style("t5", ("T5Tokenizer", "MT5Tokenizer"), ("t5", "mt5"), {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}),
        Style(
            "gpt2",
            ("GPT2Tokenizer",),
            ("gpt2",),
            {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"},
        ),
        Style(
            "llama",
            ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"),
            ("llama", "mistral", "gemma"),
            {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
        ),
    )
}


def guess_style(backend: tokenizers.Tokenizer) -> Style | None:
    """By the special tokens in the vocabulary of a tokenizer.json that stands alone."""
    for style in STYLES.values():
        if all(backend.token_to_id(token) is not None for token in style.tokens.values()):
            return style
    return None


def bert_processor(cls: tuple[str, int], sep: tuple[str, int]) -> processors.TemplateProcessing:
    """[CLS] A [SEP], and [CLS] A [SEP] B [SEP] with token type 1 from B on."""
    return processors.TemplateProcessing(
        single=[f"{cls[0]}:0", "$A:0", f"{sep[0]}:0"],
        pair=[f"{cls[0]}:0", "$A:0", f"{sep[0]}:0", "$B:1", f"{sep[0]}:1"],
        special_tokens=[cls, sep],
    )


def post_processor(
    style: Style | None, backend: tokenizers.Tokenizer, roles: Mapping[str, str], config: Mapping[str, Any]
) -> Any:
    """What puts special tokens around texts; None: leave what the backend has."""
    ids = {role: backend.token_to_id(token) for role, token in roles.items()}
    token = {role: (roles[role], i) for role, i in ids.items() if i is not None}
    name = style.name if style else None
    if name in ("bert", "roberta", "xlm-roberta", "t5"):
        if backend.post_processor is not None:
            return None
        missing = [role for role in ({"t5": ("eos",)}.get(name) or ("cls", "sep")) if role not in token]
        if missing:
            raise UserError(
                f"the tokenizer has no {missing[0]}_token, which one of type {name} needs; "
                "name it in tokenizer_config.json"
            )
        if name == "bert":
            return bert_processor(token["cls"], token["sep"])
        if name == "roberta":
            prefix = bool(config.get("add_prefix_space"))
            return processors.RobertaProcessing(token["sep"], token["cls"], add_prefix_space=prefix)
        if name == "xlm-roberta":
            cls, sep = token["cls"], token["sep"]
            pair = [cls[0], "$A", sep[0], sep[0], "$B", sep[0]]
            return processors.TemplateProcessing(single=[cls[0], "$A", sep[0]], pair=pair, special_tokens=[cls, sep])
        eos = token["eos"]
        return processors.TemplateProcessing(
            single=["$A", eos[0]], pair=["$A", eos[0], "$B", eos[0]], special_tokens=[eos]
        )
    explicit = "add_bos_token" in config or "add_eos_token" in config
    if not explicit and not (name == "llama" and backend.post_processor is None):
        return None
    bos = token.get("bos") if config.get("add_bos_token", name == "llama") else None
    eos = token.get("eos") if config.get("add_eos_token", False) else None

    def around(sequence: str, kind: int) -> list[str]:
        return [*([f"{bos[0]}:{kind}"] if bos else []), f"{sequence}:{kind}", *([f"{eos[0]}:{kind}"] if eos else [])]

    return processors.TemplateProcessing(
        single=around("$A", 0), pair=around("$A", 0) + around("$B", 1), special_tokens=[t for t in (bos, eos) if t]
    )


def named_tokens(config: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, AddedToken | None]:
    """Role -> token as the two files name it (None: declared absent); special_tokens_map.json counts first, but not
    beside an `added_tokens_decoder`, as in Transformers."""
    merged = {**config, **({} if "added_tokens_decoder" in config else special)}
    given = {role: merged[f"{role}_token"] for role in ROLES if f"{role}_token" in merged}
    return {role: None if value is None else added_token(value) for role, value in given.items()}


def added_token(value: Any, *, special: bool = True) -> AddedToken:
    """A token as the JSON files write it: its text, or an object with flags."""
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=not special)
    flags = {"special": special}
    flags |= {
        key: bool(value[key]) for key in ("special", "single_word", "lstrip", "rstrip", "normalized") if key in value
    }
    return AddedToken(str(value["content"]), **flags)


def mark_special(
    backend: tokenizers.Tokenizer,
    style: Style | None,
    named: Mapping[str, AddedToken | None],
    config: Mapping[str, Any],
) -> dict[str, str]:
    """Marks special tokens in the backend, adding those that the config names and the vocabulary lacks."""
    roles = {}
    for role in ROLES:
        token = named.get(role)
        if role not in named and style is not None and role in style.tokens:
            usual = style.tokens[role]
            if backend.token_to_id(usual) is not None:
                # The mask of these models stands for a word with the space before it.
                token = AddedToken(usual, special=True, normalized=False, lstrip=usual == "<mask>")
        if token is not None:
            add(backend, token)
            roles[role] = token.content
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = config.get(key) or ()
        for value in extra.values() if isinstance(extra, Mapping) else extra:
            add(backend, added_token(value))
    return roles


def add(backend: tokenizers.Tokenizer, token: AddedToken) -> None:
    """Has the backend find the token in any text before it splits the rest; a new one gets the next id."""
    if token.content not in {added.content for added in backend.get_added_tokens_decoder().values()}:
        backend.add_tokens([token])
