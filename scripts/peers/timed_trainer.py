"""A Transformers Trainer as all peers set it up: nothing logged or saved, and a clock on its steps."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments


class StepClock(TrainerCallback):
    """The time at the end of each step; a GPU is waited for at the two ends of the measured span only."""

    def __init__(self, warmup: int):
        self.warmup = warmup
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available() and state.global_step in (self.warmup, state.max_steps):
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """From the end of the last step of warm-up to that of the last step."""
        return self.ends[-1] - self.ends[self.warmup - 1]

    @property
    def steps(self) -> int:
        """How many are measured."""
        return len(self.ends) - self.warmup


def timed_trainer(
    model: Any, args: argparse.Namespace, directory: str, *, settings: dict[str, Any], **options: Any
) -> tuple[Trainer, StepClock]:
    """Returns a trainer and its clock.

    Args:
      args: a peer's command line: batch_size, learning_rate, weight_decay, precision, seed, warmup.
      directory: where the trainer may write.
      settings: further `TrainingArguments`, the length of training among them.
      options: further arguments of `Trainer`.
    """
    clock = StepClock(args.warmup)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            weight_decay=args.weight_decay,
            bf16=args.precision == "bf16",
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=args.seed,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        ),
        callbacks=[clock],
        **options,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, clock


def add_common_options(parser: argparse.ArgumentParser, **defaults: float) -> None:
    """Adds the options that `timed_trainer` reads, and `--model` and `--threads`."""
    parser.add_argument("--model", required=True, help="HF-format directory or hub id, with its tokenizer")
    parser.add_argument("--warmup", type=int, default=10, help="steps before the clock starts, at least 1")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--weight-decay", type=float)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--threads", type=int, help="CPU threads; absent: torch's own choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(**defaults)
