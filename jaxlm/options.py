"""The options of the command line."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence

from jaxlm import commands
from jaxlm.bench.suites import SUITES
from jaxlm.new_config.kinds import TASKS

_OTHER_NAMES = {
    "train": "'finetune' or 'pretrain'",
    "fine-tune": "'finetune'",
    "eval": "'evaluate'",
    "test": "'evaluate'",
    "infer": "'predict'",
    "inference": "'predict'",
    "export": "'convert export RUN_DIR HF_DIR'",
    "inspect": "'convert inspect DIR'",
    "upload": "'push'",
    "chat": "'generate'",
    "tokenizer": "'train-tokenizer'",
    "validate": "'check' (of data), 'finetune --dry-run' (of a config) or 'evaluate' (of a run)",
}
"""What other programs call commands."""


def _mark(text: str) -> str:
    mark = "\t" if text == "\\t" else text
    if len(mark) != 1:
        raise argparse.ArgumentTypeError(f"expected one character, found {text!r}")
    return mark


def _add_plugins(command: argparse.ArgumentParser) -> None:
    text = "a Python file that registers a task or a model family; may be given several times"
    command.add_argument("--plugin", action="append", default=[], metavar="FILE", help=text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0; found {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more; found {text!r}")
    return int(text)


def _size(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not 0 < size < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0; found {text!r}")
    return size


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0, at most 1; found {text!r}")
    return share


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads a command line. What is wrong with it ends the process with status 2 and is said on standard error."""
    parser = make_parser()
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    if name in _OTHER_NAMES:
        parser.error(f"there is no command {name!r}; expected {_OTHER_NAMES[name]}")
    options, left = parser.parse_known_args(arguments)
    # argparse takes `key=value` in one place alone; an option between two of them leaves the second over.
    overrides = [argument for argument in left if re.match(r"[^-=\s][^=\s]*=", argument)]
    unknown = [argument for argument in left if argument not in overrides]
    if not hasattr(options, "overrides"):
        unknown = left
    elif not unknown:
        options.overrides = [*options.overrides, *overrides]
    if unknown:
        dashed = "overrides" in options and unknown[0].startswith("--")
        keys = "; keys of the config are given without dashes, for instance train.epochs=3" if dashed else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{keys}")
    return options


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jaxlm", description="Trains, scores, applies and exports language models.")
    parser.add_argument("--verbose", action="store_true", help="log debugging details")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run_command: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(run_command=run_command)
        return sub

    for name, train in (("pretrain", commands.pretrain), ("finetune", commands.finetune)):
        text = "Pretrain" if name == "pretrain" else "Fine-tune"
        sub = command(name, train, f"{text} by a config; the same command resumes an unfinished run.")
        sub.add_argument("--config", required=True, metavar="FILE")
        sub.add_argument("--dry-run", action="store_true", help="check, build and compile one step, then stop")
        sub.add_argument(
            "--topology", metavar="KIND:SIZES",
            help="with --dry-run: compile for devices that are not here, for instance v5e:2x4, v5p:4x4x4 or h200:8",
        )  # fmt: skip
        text = "with --topology of TPUs: also list the instructions that take longest, with their source lines"
        sub.add_argument("--profile", action="store_true", help=text)
        sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="override a key of the config")

    sub = command("evaluate", commands.evaluate, "Score a finished run on a split of its config or on a file.")
    sub.add_argument("--run", required=True, metavar="RUN_DIR")
    sub.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        help="default: test if the config has it, else validation",
    )
    sub.add_argument("--data", metavar="FILE", help="a labelled file with the columns of the run's config")
    text = "also score each group of rows with the same value of this column, with bootstrap intervals; several times"
    sub.add_argument("--slice", action="append", default=[], metavar="COLUMN", help=text)
    text = "samples of the bootstrap of --slice (default: 200); 0: no intervals"
    sub.add_argument("--resamples", type=_count, default=200, metavar="N", help=text)
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="override a key of the run's config")

    sub = command(
        "predict", commands.predict, "Answer rows: jsonl, csv, tsv or parquet in, the same rows and `prediction` out."
    )
    sub.add_argument("--run", required=True, metavar="RUN_OR_HF_DIR")
    sub.add_argument("--input", required=True, metavar="FILE|-")
    sub.add_argument(
        "--output",
        required=True,
        metavar="FILE|-",
        help="jsonl, or by its name .csv, .tsv; vectors also .npz, .parquet",
    )
    sub.add_argument(
        "--columns", nargs="+", metavar="NAME", help="columns of a csv or tsv without a header, or of conll"
    )
    sub.add_argument("--separator", type=_mark, metavar="MARK", help="between the fields of a csv, tsv or conll input")
    sub.add_argument("--quoting", choices=("true", "false"), help="whether double quotes enclose fields")
    sub.add_argument("--encoding", metavar="NAME", help="of an input that is not UTF-8, such as cp1252")
    sub.add_argument(
        "--format",
        choices=("jsonl", "csv", "tsv", "parquet", "conll", "squad", "text"),
        help="of an input whose name does not tell",
    )
    sub.add_argument(
        "--on-bad-row", choices=("error", "stop"), default="error", help="write an `error` into its line, or stop"
    )
    sub.add_argument("--text", nargs="+", metavar="COLUMN", help="text columns for a bare HF directory (default: text)")
    how = "override how the run computes (mesh, dtype, attention) and writes (generation)"
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help=how)

    for sub in subparsers.choices.values():
        _add_plugins(sub)
        hosts = sub.add_argument_group(
            "several processes", "one command to a host; not needed on SLURM and Cloud TPU (docs/guides/scaling.md)"
        )
        hosts.add_argument("--coordinator", metavar="HOST:PORT", help="where the first process listens")
        hosts.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
        hosts.add_argument("--process-id", type=int, metavar="I", help="number of this one, from 0")
        text = "wait for all processes (default: 60, or JAXLM_CONNECT_TIMEOUT)"
        hosts.add_argument("--connect-timeout", type=int, metavar="SECONDS", help=text)
        text = "silence after which a process counts as dead (default: 100, or JAXLM_HEARTBEAT)"
        hosts.add_argument("--heartbeat", type=int, metavar="SECONDS", help=text)

    sub = command("init", commands.init, "Write a config: for a file of labelled rows, or a copy of a shipped one.")
    text = "labelled rows: csv, tsv, jsonl, parquet, conll, SQuAD; or parallel texts, a file to a language"
    sub.add_argument("--train", nargs="+", metavar="FILE", help=text)
    text = "held-out rows or texts of the same kind (default: a share of the training rows)"
    sub.add_argument("--validation", nargs="+", metavar="FILE", help=text)
    sub.add_argument("--task", choices=TASKS, help="what is learned (default: as the columns look)")
    text = "what to fine-tune (default: a small model from random parameters)"
    sub.add_argument("--model", metavar="DIR_OR_ID", help=text)
    sub.add_argument("--list", action="store_true", help="show the shipped configs, for every task")
    sub.add_argument("--template", metavar="NAME", help="write a shipped config, for instance finetune/sst2")

    sub = command(
        "check", commands.check, "Look through the labelled rows of a config: labels, lengths, copies, leaks."
    )
    _add_plugins(sub)
    sub.add_argument("--config", required=True, metavar="FILE")
    sub.add_argument("--json", metavar="FILE|-", help="write the findings as JSON")
    sub.add_argument("--html", metavar="FILE", help="write a page")
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="override a key of the config")

    sub = command("sweep", commands.sweep, "Search for settings: many runs of a config, whose keys Optuna chooses.")
    _add_plugins(sub)
    sub.add_argument("--config", required=True, metavar="FILE")
    text = "YAML: config keys with a range {low: 1e-5, high: 1e-4, log: true} or a list of values each"
    sub.add_argument("--space", required=True, metavar="FILE", help=text)
    text = "how many runs there shall be, those of earlier commands included (default: 20)"
    sub.add_argument("--trials", type=_positive, default=20, metavar="N", help=text)
    sub.add_argument("--seed", type=_count, default=0, metavar="N", help="of the choice of settings (default: 0)")
    text = "end a run that is worse after an evaluation than the median of those before (default: yes)"
    sub.add_argument("--pruning", action=argparse.BooleanOptionalAction, default=True, help=text)
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="override a key of the config")

    sub = command("augment", commands.augment, "Write training rows and copies of them that a model has rewritten.")
    _add_plugins(sub)
    sub.add_argument("--config", required=True, metavar="FILE", help="whose data.train is read, as its task says")
    text = "masked_lm: some words become others that fit; back_translation: translate, and translate back"
    sub.add_argument("--by", required=True, choices=("masked_lm", "back_translation"), help=text)
    sub.add_argument("--model", required=True, metavar="RUN_OR_HF_DIR", help="fills masks, or translates")
    sub.add_argument("--back-model", metavar="RUN_OR_HF_DIR", help="back_translation: translates back")
    sub.add_argument("--output", required=True, metavar="FILE", help="jsonl, read as data.train={path: FILE}")
    sub.add_argument("--copies", type=_positive, metavar="N", help="of each row (default: 1)")
    sub.add_argument("--share", type=_share, metavar="P", help="masked_lm: of the words (default: 0.15)")
    sub.add_argument("--top-k", type=_positive, metavar="K", help="masked_lm: draw from so many words (default: 10)")
    text = "back_translation: how texts are written (default: do_sample=true top_k=0 top_p=0.9); several times"
    sub.add_argument("--generation", action="append", default=[], metavar="key=value", help=text)
    sub.add_argument("--only-copies", action="store_true", help="leave out the rows themselves")
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="override a key of the config")

    sub = command("generate", commands.generate, "Continue prompts of the terminal, or lines of standard input.")
    _add_plugins(sub)
    sub.add_argument("--run", required=True, metavar="RUN_OR_HF_DIR")
    sub.add_argument("--text", nargs="+", metavar="COLUMN", help="text column for a bare HF directory (default: text)")
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help=how)

    sub = command("convert", commands.convert, "Export a run in HF format, or show what a checkpoint holds.")
    _add_plugins(sub)
    sub.add_argument("action", choices=("export", "inspect"))
    sub.add_argument("paths", nargs="+", metavar="DIR")

    sub = command("push", commands.push, "Upload a run's export and its model card to the Hugging Face hub.")
    sub.add_argument("run", metavar="RUN_OR_HF_DIR")
    sub.add_argument("hub_id", metavar="OWNER/NAME", help="made if there is none")
    sub.add_argument("--private", action="store_true", help="of a repository that is made")
    sub.add_argument("--revision", metavar="BRANCH", help="made if there is none (default: main)")

    sub = command("train-tokenizer", commands.train_tokenizer, "Learn a vocabulary from files; writes an HF directory.")
    sub.add_argument("--input", nargs="+", required=True, metavar="FILE", help="text, .jsonl, .parquet; also .gz, .zst")
    sub.add_argument("--type", choices=("unigram", "bpe", "wordpiece", "byte_bpe", "char"), required=True)
    sub.add_argument("--vocab-size", type=_positive, metavar="N", help="most tokens (char: default all characters)")
    sub.add_argument("--output", required=True, metavar="DIR")
    sub.add_argument("--family", help="whose special tokens (default by type: t5, llama, bert, gpt2)")
    sub.add_argument("--lowercase", action=argparse.BooleanOptionalAction, help="wordpiece (default: lower case)")
    sub.add_argument("--min-frequency", type=_positive, metavar="N", help="wordpiece, byte_bpe (default: 2)")
    sub.add_argument("--column", default="text", help="of .jsonl and .parquet (default: text)")
    sub.add_argument("--max-sentences", type=_positive, metavar="N", help="unigram, bpe: most pieces to learn from")

    sub = command(
        "bench",
        commands.bench,
        "Speed of fine-tuning, generation, reading, a start, fake devices; memory of an evaluation.",
    )
    sub.add_argument("--suite", choices=tuple(SUITES), default="finetune")
    sub.add_argument("--config", metavar="YAML", help="config: the run whose training steps are timed")
    sub.add_argument("--input", metavar="JSONL", help='generation: rows of {"text": ...}')
    sub.add_argument("--texts", type=_positive, default=500, help="generation: the first so many of them")
    sub.add_argument("--num-beams", type=_positive, default=1, help="generation: 1 takes the likeliest token")
    sub.add_argument("--max-new-tokens", type=_positive, default=64, help="generation: most tokens of a text")
    sub.add_argument("--rows", type=_positive, default=200_000, help="rows, evaluation: rows of the split")
    sub.add_argument("--gigabytes", type=_size, default=1.0, help="corpus: size of the text that is tokenized and read")
    sub.add_argument(
        "--peer", action="store_true", help="finetune, config, generation: Transformers beside it (extra: parity)"
    )
    text = "config: network and tokenizer of the peer, where the config begins with random parameters"
    sub.add_argument("--peer-model", metavar="HF_DIR", help=text)
    sub.add_argument("--model", default="models/minilm", metavar="HF_DIR")
    sub.add_argument("--train", default="data/classification/sst2/train.tsv", metavar="TSV")
    sub.add_argument("--max-length", type=_positive, default=128, help="finetune, rows: tokens at which texts are cut")
    sub.add_argument("--steps", type=_positive, default=50)
    sub.add_argument("--warmup", type=_count, default=10)
    sub.add_argument("--rounds", type=_positive, default=3)
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="finetune")
    sub.add_argument("--worker", action="store_true", help="one measurement in this process, as JSON")
    sub.add_argument("--no-packing", action="store_true", help="with --worker: pad instead of packing")
    sub.add_argument("--preset", default="ddp", help="scaling, with --worker: mesh preset over this process's devices")
    sub.add_argument(
        "--order", choices=("random", "balanced"), default="random", help="with --worker: data.batch_order"
    )
    sub.add_argument(
        "--matmul", choices=("auto", "float32", "bfloat16"), default="auto", help="with --worker: model.matmul"
    )
    sub.add_argument("--seed", type=_count, default=0, help="with --worker")
    text = "also write all figures, the machine and the versions into this JSON file"
    sub.add_argument("--out", metavar="FILE", help=text)
    text = "finetune, config, generation: also add a line for each ratio to this CSV file, as docs/benchmarks.csv"
    sub.add_argument("--log", metavar="FILE", help=text)
    return parser
