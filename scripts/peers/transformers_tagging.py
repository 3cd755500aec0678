"""The peer of tagging: the recipe of Transformers' run_ner with its Trainer, and conlleval's scores as JSON.

It runs as a process of its own, so that torch and jax never share one, and imports nothing of jaxlm. Files are CoNLL's,
a word and its tag to a line, blank lines between sentences, or jsonl with `tokens` and `tags`; tags are BIO, BMES or
BIOES. A word's first token carries its tag; words beyond `--max-length` tokens are cut off, and are wrong where they
have an entity. Batches are padded to their longest sentence.

The clock starts at the end of step `--warmup` and stops at the end of the last step of training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from timed_trainer import CountingCollator, add_common_options, load_model, print_figures, speed, timed_trainer
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
)

IGNORED = -100


class Sentence(NamedTuple):
    words: list[str]
    tags: list[str]


def read(path: Path) -> list[Sentence]:
    """The sentences of a file."""
    if path.suffix == ".jsonl":
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return [Sentence(row["tokens"], row["tags"]) for row in rows]
    sentences, words, tags = [], [], []
    for line in [*path.read_text(encoding="utf-8").split("\n"), ""]:
        if line.strip():
            word, tag = line.split("\t") if "\t" in line else line.split()
            words.append(word)
            tags.append(tag.strip())
        elif words:
            sentences.append(Sentence(words, tags))
            words, tags = [], []
    return sentences


class Rows(torch.utils.data.Dataset):
    """Model inputs with a label at the first token of each word, and which word each token begins."""

    def __init__(self, sentences: list[Sentence], names: list[str], tokenizer, max_length: int):
        ids = {name: i for i, name in enumerate(names)}
        encoded = tokenizer(
            [sentence.words for sentence in sentences],
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
        )
        fields = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded]
        self.rows, self.words = [], []
        for i, sentence in enumerate(sentences):
            index = encoded.word_ids(i)
            begins = [
                w if w is not None and w != before else None for before, w in zip([None, *index], index, strict=False)
            ]
            labels = [IGNORED if w is None else ids.get(sentence.tags[w], ids["O"]) for w in begins]
            self.rows.append({**{name: encoded[name][i] for name in fields}, "labels": labels})
            self.words.append(begins)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


def predicted_tags(sentences: list[Sentence], rows: Rows, logits: np.ndarray, names: list[str]) -> list[list[str]]:
    """A tag for each word; O for words that were cut off."""
    found = []
    for sentence, begins, scores in zip(sentences, rows.words, logits, strict=True):
        tags = ["O"] * len(sentence.words)
        for position, word in enumerate(begins):
            if word is not None:
                tags[word] = names[int(scores[position].argmax())]
        found.append(tags)
    return found


# The scores of conlleval.


def entities(tags: list[str]) -> set[tuple[str, int, int]]:
    """(type, first word, end) of each: one begins at B-, at another type, and at an I- that follows no entity."""
    found, kind, start = set(), "", 0
    for i, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        mark = {"M": "I", "E": "I", "S": "B"}.get(mark, mark)
        if kind and (mark != "I" or name != kind):
            found.add((kind, start, i))
            kind = ""
        if not kind and mark != "O":
            kind, start = name, i
    return found


def score(sentences: list[Sentence], predicted: list[list[str]]) -> dict[str, float]:
    pairs = [(entities(s.tags), entities(tags)) for s, tags in zip(sentences, predicted, strict=True)]
    right, of_gold, given = (sum(map(len, sets)) for sets in zip(*((g & p, g, p) for g, p in pairs), strict=True))
    same = [a == b for s, tags in zip(sentences, predicted, strict=True) for a, b in zip(s.tags, tags, strict=True)]
    return {
        "precision": right / max(1, given),
        "recall": right / max(1, of_gold),
        "f1": 2 * right / max(1, of_gold + given),
        "accuracy": float(np.mean(same)),
    }


def run(args: argparse.Namespace) -> dict:
    """Fine-tunes as asked; the figures to print."""
    transformers.set_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    train_sentences = read(args.train)[: args.limit]
    names = ["O", *sorted({tag for s in train_sentences for tag in s.tags} - {"O"})]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = load_model(AutoModelForTokenClassification, args, num_labels=len(names))
    train = Rows(train_sentences, names, tokenizer, args.max_length)
    collator = CountingCollator(DataCollatorForTokenClassification(tokenizer))
    with tempfile.TemporaryDirectory() as directory:
        trainer, clock = timed_trainer(
            model,
            args,
            directory,
            settings={"num_train_epochs": args.epochs},
            train_dataset=train,
            data_collator=collator,
        )
        trainer.train()
        figures = speed(clock, collator)  # evaluation collates, too
        if args.validation:
            sentences = read(args.validation)
            validation = Rows(sentences, names, tokenizer, args.max_length)
            logits = np.asarray(trainer.predict(validation).predictions)
            figures |= score(sentences, predicted_tags(sentences, validation, logits, names))
    return {
        "peer": "transformers-run-ner",
        "sentences": len(train_sentences),
        **figures,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; the defaults are those of configs/finetune/wnut17.yaml."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_common_options(parser, batch_size=16, learning_rate=1e-4, weight_decay=0.01, warmup_steps=0.1)
    parser.add_argument("--limit", type=int, help="only the first training sentences")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--max-length", type=int, default=128)
    return parser.parse_args(argv)


def main() -> None:
    print_figures(run, parse())


if __name__ == "__main__":
    main()
