"""Families of tokenizers: the special tokens of each, their roles and ids, and where they go around a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import processors

from jaxlm.errors import UserError, did_you_mean
from jaxlm.tokenizer import mbart_codes

TokenIds = Mapping[str, tuple[str, int]]
"""Role -> token and id."""


@dataclass(frozen=True)
class TokenizerFamily:
    """One convention of special tokens, in files that are read and in vocabularies that are trained.

    Attributes:
      aliases: model families that use the same tokens.
      classes: tokenizer classes of Transformers.
      roles: role -> token.
      tokens: special tokens of a new vocabulary, with ids 0, 1, ...
      needs: roles without which `processor` cannot be made.
      processor: makes the post-processor that puts special tokens around texts; None: BOS and EOS where the config asks
        for them.
      adds_bos: BOS is put before a text unless the config says otherwise.
      extra_ids: number of T5's sentinels `<extra_id_i>` at the end of a vocabulary, the highest number first.
      model_types: further values of `model_type` in config.json whose tokenizers are read alike.
      adds_missing: tokens of roles that the vocabulary lacks are added behind it.
      sentencepiece_file: name of the SentencePiece model in a directory; "": the family has none.
      sentencepiece_options: settings of the SentencePiece trainer; <unk> <s> </s> are 0, 1, 2 where these say nothing.
      further: special tokens without a role, such as codes of languages.
    """

    name: str
    aliases: tuple[str, ...]
    classes: tuple[str, ...]
    roles: Mapping[str, str]
    tokens: tuple[str, ...]
    needs: tuple[str, ...] = ()
    processor: Callable[[TokenIds, Mapping[str, Any]], Any] | None = None
    adds_bos: bool = False
    extra_ids: int = 0
    model_types: tuple[str, ...] = ()
    adds_missing: bool = False
    sentencepiece_file: str = ""
    sentencepiece_options: Mapping[str, Any] | None = None
    further: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The family's name and its aliases."""
        return (self.name, *self.aliases)

    @property
    def sentinels(self) -> list[str]:
        """Sentinels in the order of their ids."""
        return [f"<extra_id_{i}>" for i in reversed(range(self.extra_ids))]


def _bert_processor(token: TokenIds, config: Mapping[str, Any]) -> processors.TemplateProcessing:
    """[CLS] A [SEP], and [CLS] A [SEP] B [SEP] with token type 1 from B on."""
    cls, sep = token["cls"], token["sep"]
    return processors.TemplateProcessing(
        single=[f"{cls[0]}:0", "$A:0", f"{sep[0]}:0"],
        pair=[f"{cls[0]}:0", "$A:0", f"{sep[0]}:0", "$B:1", f"{sep[0]}:1"],
        special_tokens=[cls, sep],
    )


def _roberta_processor(token: TokenIds, config: Mapping[str, Any]) -> processors.RobertaProcessing:
    """<s> A </s>, and <s> A </s> </s> B </s>."""
    prefix = bool(config.get("add_prefix_space"))
    return processors.RobertaProcessing(token["sep"], token["cls"], add_prefix_space=prefix)


def _mpnet_processor(token: TokenIds, config: Mapping[str, Any]) -> processors.RobertaProcessing:
    """As RoBERTa's, over WordPiece."""
    return processors.RobertaProcessing(token["sep"], token["cls"], add_prefix_space=False)


def _xlm_roberta_processor(token: TokenIds, config: Mapping[str, Any]) -> processors.TemplateProcessing:
    """As RoBERTa's, over SentencePiece."""
    cls, sep = token["cls"], token["sep"]
    pair = [cls[0], "$A", sep[0], sep[0], "$B", sep[0]]
    return processors.TemplateProcessing(single=[cls[0], "$A", sep[0]], pair=pair, special_tokens=[cls, sep])


def _mbart_processor(token: TokenIds, config: Mapping[str, Any]) -> processors.TemplateProcessing:
    """A </s> and the code of the language, and A B </s> and the code."""
    code = token[_language(token, config)]
    return _after_texts([token["eos"], code])


def _mbart50_processor(token: TokenIds, config: Mapping[str, Any]) -> processors.TemplateProcessing:
    """The code of the language, A </s>, and the code, A B </s>."""
    code, eos = token[_language(token, config)], token["eos"]
    return processors.TemplateProcessing(
        single=[code[0], "$A", eos[0]], pair=[code[0], "$A", "$B", eos[0]], special_tokens=[code, eos]
    )


def _language(token: TokenIds, config: Mapping[str, Any]) -> str:
    code = config.get("src_lang") or mbart_codes.DEFAULT
    if not isinstance(code, str) or code not in token:
        known = [name for name in token if "_" in name]
        hint = did_you_mean(code, known) if isinstance(code, str) else ""
        raise UserError(f"tokenizer_config.json: src_lang: expected a code such as de_DE, found {code!r:.60}{hint}")
    return code


def _eos_processor(token: TokenIds, config: Mapping[str, Any]) -> processors.TemplateProcessing:
    """A </s>, and A B </s>."""
    return _after_texts([token["eos"]])


def _after_texts(tokens: list[tuple[str, int]]) -> processors.TemplateProcessing:
    after = [name for name, _ in tokens]
    return processors.TemplateProcessing(single=["$A", *after], pair=["$A", "$B", *after], special_tokens=tokens)


def _t5_processor(token: TokenIds, config: Mapping[str, Any]) -> processors.TemplateProcessing:
    """A </s>, and A </s> B </s>."""
    eos = token["eos"]
    return processors.TemplateProcessing(single=["$A", eos[0]], pair=["$A", eos[0], "$B", eos[0]], special_tokens=[eos])


_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_FAIRSEQ = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}

PEGASUS = ("<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, 103)))
"""Tokens of Pegasus' pretraining, from id 2 on."""

FAMILIES = {
    family.name: family
    for family in (
        TokenizerFamily(
            "bert",
            ("distilbert", "electra", "mobilebert"),
            ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"),
            _BERT,
            ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
            needs=("cls", "sep"),
            processor=_bert_processor,
        ),
        TokenizerFamily(
            "roberta",
            ("bart", "longformer"),
            ("RobertaTokenizer", "LongformerTokenizer", "BartTokenizer"),
            _FAIRSEQ,
            ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
            needs=("cls", "sep"),
            processor=_roberta_processor,
        ),
        TokenizerFamily(
            "xlm-roberta",
            (),
            ("XLMRobertaTokenizer",),
            _FAIRSEQ,
            ("<s>", "<pad>", "</s>", "<unk>"),
            needs=("cls", "sep"),
            processor=_xlm_roberta_processor,
            sentencepiece_file="sentencepiece.bpe.model",
            sentencepiece_options={},
        ),
        TokenizerFamily(
            "mbart",
            (),
            ("MBartTokenizer",),
            _FAIRSEQ,
            ("<s>", "<pad>", "</s>", "<unk>"),
            needs=("eos",),
            processor=_mbart_processor,
            sentencepiece_file="sentencepiece.bpe.model",
            further=mbart_codes.MBART,
        ),
        TokenizerFamily(
            "mbart50",
            (),
            ("MBart50Tokenizer",),
            {role: token for role, token in _FAIRSEQ.items() if role != "bos"},
            ("<s>", "<pad>", "</s>", "<unk>"),
            needs=("eos",),
            processor=_mbart50_processor,
            sentencepiece_file="sentencepiece.bpe.model",
            further=mbart_codes.MBART50,
        ),
        TokenizerFamily(
            "mpnet",
            (),
            ("MPNetTokenizer",),
            {**_FAIRSEQ, "unk": "[UNK]"},
            ("<s>", "<pad>", "</s>", "[UNK]", "<mask>"),
            needs=("cls", "sep"),
            processor=_mpnet_processor,
            adds_missing=True,
        ),
        TokenizerFamily(
            "deberta-v2",
            (),
            ("DebertaV2Tokenizer",),
            {"bos": "[CLS]", "eos": "[SEP]", **_BERT},
            ("[PAD]", "[CLS]", "[SEP]", "[UNK]"),
            needs=("cls", "sep"),
            processor=_bert_processor,
            adds_missing=True,
            sentencepiece_file="spm.model",
        ),
        TokenizerFamily(
            "albert",
            (),
            ("AlbertTokenizer",),
            {**_BERT, "bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "pad": "<pad>"},
            ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
            needs=("cls", "sep"),
            processor=_bert_processor,
            sentencepiece_file="spiece.model",
        ),
        TokenizerFamily(
            "pegasus",
            (),
            ("PegasusTokenizer",),
            {"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask_2>"},
            ("<pad>", "</s>"),
            needs=("eos",),
            processor=_eos_processor,
            sentencepiece_file="spiece.model",
            further=tuple(token for token in PEGASUS if token != "<mask_2>"),
        ),
        TokenizerFamily(
            "t5",
            ("mt5",),
            ("T5Tokenizer", "MT5Tokenizer"),
            {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
            ("<pad>", "</s>", "<unk>"),
            needs=("eos",),
            processor=_t5_processor,
            extra_ids=100,
            sentencepiece_file="spiece.model",
            sentencepiece_options={"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        ),
        TokenizerFamily(
            "gpt2",
            (),
            ("GPT2Tokenizer",),
            {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"},
            ("<|endoftext|>",),
        ),
        TokenizerFamily(
            "llama",
            ("mistral",),
            ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"),
            {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
            ("<unk>", "<s>", "</s>"),
            adds_bos=True,
            model_types=("gemma",),
            sentencepiece_file="tokenizer.model",
            sentencepiece_options={
                "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False,
                "allow_whitespace_only_pieces": True,
                "split_digits": True,
                "byte_fallback": True,
            },
        ),
        TokenizerFamily(
            "marian",
            (),
            ("MarianTokenizer",),
            {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
            ("</s>", "<unk>"),
            needs=("eos",),
            processor=_eos_processor,
        ),
    )
}
"""In this order they are tried on a vocabulary whose family no file names."""

CHOICES = {
    "wordpiece": ("bert",),
    "unigram": ("t5", "llama", "xlm-roberta"),
    "bpe": ("llama", "t5", "xlm-roberta"),
    "byte_bpe": ("gpt2", "roberta", "bert", "t5", "llama"),
    "char": ("gpt2", "bert", "roberta", "t5", "llama"),
}
"""Families of each type of new tokenizer, its default first."""


def choose_family(kind: str, name: str | None) -> TokenizerFamily:
    """Returns the family called `name` (None: the default) for new tokenizers of type `kind`.

    Raises:
      UserError: the type has no such family.
    """
    choices = [FAMILIES[choice] for choice in CHOICES[kind]]
    if name is None:
        return choices[0]
    for family in choices:
        if name in family.names:
            return family
    known = [alias for family in choices for alias in family.names]
    message = f"family: no special tokens {name!r} for type {kind}; expected {', '.join(known)}"
    raise UserError(message + did_you_mean(name, known))


def guess_family(backend: tokenizers.Tokenizer) -> TokenizerFamily | None:
    """Returns the family whose special tokens are all in the vocabulary."""
    for family in FAMILIES.values():
        if all(backend.token_to_id(token) is not None for token in family.roles.values()):
            return family
    return None


def post_processor(
    family: TokenizerFamily | None, backend: tokenizers.Tokenizer, roles: Mapping[str, str], config: Mapping[str, Any]
) -> Any:
    """Returns the post-processor that puts special tokens around texts; None: the backend keeps its own.

    Args:
      roles: role -> token of this tokenizer.
      config: tokenizer_config.json.
    Raises:
      UserError: the tokenizer lacks a token that the family puts around texts.
    """
    ids = {role: backend.token_to_id(token) for role, token in roles.items()}
    token = {role: (roles[role], i) for role, i in ids.items() if i is not None}
    for name in () if family is None else family.further:
        if (i := backend.token_to_id(name)) is not None:
            token[name] = (name, i)
    if family is None or family.processor is None:
        return _bos_eos_processor(family is not None and family.adds_bos, backend, token, config)
    if backend.post_processor is not None:
        return None
    for role in family.needs:
        if role not in token:
            raise UserError(
                f"the tokenizer has no {role}_token, which one of type {family.name} needs; "
                "name it in tokenizer_config.json"
            )
    return family.processor(token, config)


def _bos_eos_processor(
    adds_bos: bool, backend: tokenizers.Tokenizer, token: TokenIds, config: Mapping[str, Any]
) -> processors.TemplateProcessing | None:
    """<s> A and <s> A <s> B, by the config's `add_bos_token` and `add_eos_token`."""
    explicit = "add_bos_token" in config or "add_eos_token" in config
    if not explicit and not (adds_bos and backend.post_processor is None):
        return None
    bos = token.get("bos") if config.get("add_bos_token", adds_bos) else None
    eos = token.get("eos") if config.get("add_eos_token", False) else None

    def around(sequence: str, kind: int) -> list[str]:
        return [*([f"{bos[0]}:{kind}"] if bos else []), f"{sequence}:{kind}", *([f"{eos[0]}:{kind}"] if eos else [])]

    return processors.TemplateProcessing(
        single=around("$A", 0), pair=around("$A", 0) + around("$B", 1), special_tokens=[t for t in (bos, eos) if t]
    )
