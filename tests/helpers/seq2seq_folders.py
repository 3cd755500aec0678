"""Tokenizer folders of mBART, mBART-50, Pegasus and Marian, with SentencePiece models trained on a few words."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
from helpers.tokenizer_folders import LOREM

GERMAN = "das ist ein Haus und der Hund schläft, ß weiß ich nicht"
SPECIAL = {"pegasus": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}}
FILES = {"mbart": "sentencepiece.bpe.model", "mbart50": "sentencepiece.bpe.model", "pegasus": "spiece.model"}
CLASSES = {"mbart": "MBartTokenizer", "mbart50": "MBart50Tokenizer", "pegasus": "PegasusTokenizer"}


def train(path: Path, texts: list[str], **options) -> sentencepiece.SentencePieceProcessor:
    prefix = path.with_suffix("")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 3), model_prefix=str(prefix), vocab_size=60, hard_vocab_limit=False,
        minloglevel=2, **options,
    )  # fmt: skip
    Path(f"{prefix}.vocab").unlink()
    Path(f"{prefix}.model").rename(path)
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def folder(directory: Path, name: str, **config) -> tuple[Path, sentencepiece.SentencePieceProcessor]:
    directory.mkdir()
    model_type = "mbart" if name == "mbart50" else name
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": CLASSES[name], **config}))
    return directory, train(directory / FILES[name], [LOREM, GERMAN], **SPECIAL.get(name, {}))


def marian(directory: Path, **config) -> Path:
    """A vocabulary with the pieces of both sides in an order of its own, but for one of them."""
    directory.mkdir()
    sides = {"source.spm": LOREM, "target.spm": GERMAN}
    models = [train(directory / name, [text]) for name, text in sides.items()]
    pieces = {model.id_to_piece(i) for model in models for i in range(3, model.get_piece_size())} - {"▁f"}
    entries = ["</s>", "<unk>", *sorted(pieces), ">>fra<<", ">>deu<<", "<pad>"]
    (directory / "vocab.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (directory / "config.json").write_text('{"model_type": "marian"}')
    (directory / "tokenizer_config.json").write_text(json.dumps({"source_lang": "eng", "target_lang": "deu", **config}))
    return directory
