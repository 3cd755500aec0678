"""Model families by HF `model_type`: one line each, and those that `register` adds."""

from __future__ import annotations

from jaxlm.errors import UserError
from jaxlm.models import (
    albert,
    bart_family,
    bert,
    deberta_family,
    distilbert,
    electra,
    gpt2,
    llama_family,
    modernbert_family,
    mpnet,
    recurrent,
    recurrent_seq2seq_family,
    roberta,
    t5_family,
)
from jaxlm.models.base import Family, Head, Model

FAMILIES: dict[str, Family] = {
    "albert": albert.FAMILY,
    "bart": bart_family.FAMILY,
    "bert": bert.FAMILY,
    "deberta-v2": deberta_family.FAMILY,
    "distilbert": distilbert.FAMILY,
    "electra": electra.FAMILY,
    "gpt2": gpt2.FAMILY,
    "gru": recurrent.GRU_FAMILY,
    "gru_seq2seq": recurrent_seq2seq_family.GRU_FAMILY,
    "llama": llama_family.FAMILY,
    "lstm": recurrent.LSTM_FAMILY,
    "lstm_seq2seq": recurrent_seq2seq_family.LSTM_FAMILY,
    "marian": bart_family.MARIAN_FAMILY,
    "mbart": bart_family.MBART_FAMILY,
    "mistral": llama_family.MISTRAL,
    "modernbert": modernbert_family.FAMILY,
    "mpnet": mpnet.FAMILY,
    "mt5": t5_family.MT5,
    "pegasus": bart_family.PEGASUS_FAMILY,
    "qwen2": llama_family.QWEN2,
    "qwen3": llama_family.QWEN3,
    "roberta": roberta.FAMILY,
    "t5": t5_family.FAMILY,
    "xlm-roberta": roberta.XLM_FAMILY,
}


def get_family(name: str, where: str) -> Family:
    """Returns a family by name; UserError listing the supported ones, prefixed by `where` the name came from."""
    if name not in FAMILIES:
        raise UserError(f"{where}: model type {name!r} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def register(family: Family) -> None:
    """Adds a family from outside the package: configs and checkpoints then find it by its name.

    Raises:
      UserError: another family has the name.
    """
    if FAMILIES.get(family.name, family) is not family:
        raise UserError(f"models.register: the model type {family.name!r} is taken; give the family another name")
    FAMILIES[family.name] = family


__all__ = ["FAMILIES", "Family", "Head", "Model", "get_family", "register"]
