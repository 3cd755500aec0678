"""A Transformers Trainer as all peers set it up: nothing logged or saved, and a clock on its steps."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Adafactor, AutoConfig, PrinterCallback, Trainer, TrainerCallback, TrainingArguments


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


class CountingCollator:
    """Collates as another does, and counts what it padded."""

    def __init__(self, collate: Callable[[list[dict]], Any]):
        self.collate = collate
        self.batches: list[tuple[int, int, int]] = []

    def __call__(self, rows: list[dict]) -> Any:
        batch = self.collate(rows)
        self.batches.append((len(rows), int(batch["attention_mask"].sum()), batch["input_ids"].numel()))
        return batch


def speed(clock: StepClock, collator: CountingCollator) -> dict[str, float]:
    """Examples and tokens a second of the measured steps, and how much of their batches was padding."""
    measured = collator.batches[clock.warmup : len(clock.ends)]
    examples, tokens, cells = (sum(column) for column in zip(*measured, strict=True))
    return {
        "steps": len(measured),
        "seconds": clock.seconds,
        "examples_per_second": examples / clock.seconds,
        "tokens_per_second": tokens / clock.seconds,
        "padding_share": 1 - tokens / cells,
    }


def load_model(kind: Any, args: argparse.Namespace, **settings: Any) -> Any:
    """The model of a peer's command line in float32, by one of Transformers' Auto classes."""
    settings["attn_implementation"] = "sdpa"
    if args.random_weights:
        return kind.from_config(AutoConfig.from_pretrained(args.model, **settings))
    return kind.from_pretrained(args.model, dtype=torch.float32, **settings)


def timed_trainer(
    model: Any, args: argparse.Namespace, directory: str, *, settings: dict[str, Any], **options: Any
) -> tuple[Trainer, StepClock]:
    """Returns a trainer and its clock.

    Args:
      args: a peer's command line: batch_size, optimizer, learning_rate, weight_decay, warmup_steps, precision, seed,
        warmup, steps.
      directory: where the trainer may write.
      settings: further `TrainingArguments`, the length of training among them.
      options: further arguments of `Trainer`.
    """
    clock = StepClock(args.warmup)
    if args.optimizer == "adafactor":  # with the sizes of parameters in the rate, which the Trainer's own leaves out
        rate = {"lr": args.learning_rate, "scale_parameter": True, "relative_step": False}
        optimizer = Adafactor(model.parameters(), weight_decay=args.weight_decay, warmup_init=False, **rate)
        options["optimizers"] = (optimizer, None)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            weight_decay=args.weight_decay,
            bf16=args.precision == "bf16",
            use_cpu=not torch.cuda.is_available(),  # else it refuses bf16 there
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=args.seed,
            max_steps=args.steps or -1,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            warmup_steps=args.warmup_steps,
            **settings,
        ),
        callbacks=[clock],
        **options,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, clock


def add_common_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Adds the options that `timed_trainer` reads, and those that every peer has."""
    parser.add_argument("--model", required=True, help="HF-format directory or hub id, with its tokenizer")
    parser.add_argument("--random-weights", action="store_true", help="take only the config and tokenizer of the model")
    parser.add_argument("--train", required=True, type=Path)
    parser.add_argument("--validation", type=Path, help="the file that is scored after the last step; absent: none")
    parser.add_argument("--steps", type=int, help="of training; absent: as many as the epochs have")
    parser.add_argument("--json", action="store_true", help="one line of JSON and nothing else")
    parser.add_argument("--warmup", type=int, default=10, help="steps before the clock starts, at least 1")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--optimizer", choices=("adamw", "adafactor"), default="adamw")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--weight-decay", type=float)
    text = "of the learning rate's warm-up; below 1: as a share of all steps"
    parser.add_argument("--warmup-steps", type=float, default=0, help=text)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--threads", type=int, help="CPU threads; absent: torch's own choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(**defaults)


def print_figures(run: Callable[[argparse.Namespace], dict[str, Any]], args: argparse.Namespace) -> None:
    """Runs a peer as its command line asks, and prints what it measured as JSON."""
    if args.json:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    print(json.dumps(run(args), indent=None if args.json else 2))
