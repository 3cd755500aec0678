"""The benchmark's peer: fine-tunes a text classifier with the Transformers Trainer and prints its speed as JSON.

It runs as a process of its own, so that torch and jax never share one, and imports nothing of jaxlm.
The input is TSV without a header: one or two texts, then a label.

The clock starts at the end of step `--warmup` and stops at the end of the last step, so loading, collation and the
optimizer are inside it, start-up and evaluation outside. The group-by-length sampler sorts mega-batches of 50 batches
by falling length: measure a multiple of 50 steps (the default), or the result depends on which lengths were drawn.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from timed_trainer import CountingCollator, add_common_options, load_model, print_figures, speed, timed_trainer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)


class Examples(torch.utils.data.Dataset):
    """Tokenised rows; `labels` gives the ids of the label names."""

    def __init__(self, path: Path, tokenizer, max_length: int, labels: dict[str, int]):
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        texts = [[row[i] for row in rows] for i in range(len(rows[0]) - 1)]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length)
        self.rows = [
            {**{key: values[i] for key, values in encoded.items()}, "labels": labels[row[-1]]}
            for i, row in enumerate(rows)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


def label_ids(path: Path) -> dict[str, int]:
    """The label names of a file, numbered in sorted order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: i for i, name in enumerate(sorted({line.rsplit("\t", 1)[1] for line in lines}))}


def run(args: argparse.Namespace) -> dict:
    """Fine-tunes as asked; the figures to print."""
    transformers.set_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    labels = label_ids(args.train)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = load_model(AutoModelForSequenceClassification, args, num_labels=len(labels))
    train = Examples(args.train, tokenizer, args.max_length, labels)
    validation = Examples(args.validation, tokenizer, args.max_length, labels) if args.validation else None
    collator = CountingCollator(DataCollatorWithPadding(tokenizer, pad_to_multiple_of=args.pad_to_multiple_of))
    with tempfile.TemporaryDirectory() as directory:
        trainer, clock = timed_trainer(
            model,
            args,
            directory,
            settings={
                "train_sampling_strategy": "group_by_length" if args.group_by_length else "random",
                "torch_compile": args.compile,
            },
            train_dataset=train,
            eval_dataset=validation,
            data_collator=collator,
            compute_metrics=lambda p: {"accuracy": float(np.mean(np.argmax(p.predictions, -1) == p.label_ids))},
        )
        trainer.train()
        scores = trainer.evaluate() if validation else {}
    per_example = sum(len(row["input_ids"]) for row in train.rows) / len(train)
    return {
        "peer": "transformers-trainer",
        "group_by_length": args.group_by_length,
        "precision": args.precision,
        "compile": args.compile,
        "batch_size": args.batch_size,
        **(figures := speed(clock, collator)),
        # What the token rate means at the data's mean length: free of the luck of the draw.
        "examples_per_second_at_mean_length": figures["tokens_per_second"] / per_example,
        "accuracy": scores.get("eval_accuracy"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; see the module's docstring for what is measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_common_options(parser, batch_size=32, learning_rate=5e-5, weight_decay=0.01, steps=60)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--group-by-length", action="store_true", help="batches of like lengths")
    parser.add_argument("--pad-to-multiple-of", type=int, help="fewer shapes, and tensor cores' favourites, on a GPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    args = parser.parse_args(argv)
    if not 1 <= args.warmup < args.steps:
        parser.error(f"--warmup {args.warmup}: expected at least 1 and less than --steps {args.steps}")
    return args


def main() -> None:
    print_figures(run, parse())


if __name__ == "__main__":
    main()
