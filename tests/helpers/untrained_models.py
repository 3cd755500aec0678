"""HF-format directories that no training made: weights by a formula, and a vocabulary of characters."""

from __future__ import annotations

from pathlib import Path

from helpers.hf_folders import write_checkpoint
from helpers.tiny_models import tiny

from jaxlm.models import FAMILIES
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.training import train_tokenizer

LABELS = {"0": "neg", "1": "pos"}


def write_model(directory: Path, family: str, head: str, architecture: str) -> Path:
    """Writes a tiny model with a head of this kind, of two labels where it has labels."""
    config = {"model_type": family, **FAMILIES[family].to_hf(tiny(family).config)}
    write_checkpoint(directory, {**config, "architectures": [architecture], "id2label": LABELS}, head)
    settings = TokenizerTrainingConfig(type="char", family=family)
    train_tokenizer(["a good fox was bad"], settings).save(directory)
    return directory


def write_classifier(directory: Path) -> Path:
    """A BERT for two labels, neg and pos."""
    return write_model(directory, "bert", "classification", "BertForSequenceClassification")
