"""A pretrained-looking encoder on disk, with a tokenizer of few words: what runs of few parameters start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.finetuning_runs import FILLER, WORDS
from helpers.hf_folders import write_checkpoint

_ENTRIES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *FILLER,
    *(word for words in WORDS.values() for word in words),
]
SIZES: dict[str, Any] = {
    "model_type": "bert", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.1, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def write_base(directory: Path, positions: int = 64) -> Path:
    """A BERT without a head for labels; its weights follow a formula."""
    sizes = {**SIZES, "max_position_embeddings": positions, "architectures": ["BertForMaskedLM"]}
    write_checkpoint(directory, sizes, "masked_lm")
    (directory / "vocab.txt").write_text("\n".join(_ENTRIES) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": positions}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory
