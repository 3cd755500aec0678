"""The command line: `jaxlm train-tokenizer|pretrain|finetune|evaluate|predict|convert|bench`, and scripts/*.py."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxlm.console import printable, setup_logging
from jaxlm.errors import Interrupted, RunFailure, UserError
from jaxlm.files import sha256
from jaxlm.local_paths import check_local, expand
from jaxlm.parallel.backends import explain_absent
from jaxlm.parallel.cluster import Cluster, detect_cluster
from jaxlm.parallel.cpu_env import restart_with_settings
from jaxlm.parallel.launch import supervise
from jaxlm.plugins import load_plugins

log = logging.getLogger("jaxlm")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, 1 a failure, 2 a user's mistake, 3 a saved interruption."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options = parser.parse_args(arguments)
    options.command_line = shlex.join(["jaxlm", *arguments])
    try:
        _check_paths(options)
    except UserError as error:
        return _fail("error", error, 2)
    if not hasattr(options, "coordinator"):
        setup_logging(options.verbose)
        return _run(options, options.run_command)
    try:
        cluster = detect_cluster(options.coordinator, options.num_processes, options.process_id)
    except UserError as error:
        return _fail("error", error, 2)
    if cluster is None:
        setup_logging(options.verbose)
        return _run(options, options.run_command)
    return _run_one_of_several(options, cluster)


_PATHS = ("config", "data", "input", "model", "output", "paths", "plugin", "run", "train")
"""Options that are paths."""


def _check_paths(options: argparse.Namespace) -> None:
    """Puts the home folder for `~/` in options that are paths.

    Raises:
      UserError: an option names a path of another machine.
    """
    for name in _PATHS:
        given = getattr(options, name, None) or ()
        for path in [given] if isinstance(given, str) else given:
            check_local(path, "convert" if name == "paths" else f"--{name}")
        if given:
            setattr(options, name, expand(given) if isinstance(given, str) else [expand(str(path)) for path in given])


def _run_one_of_several(options: argparse.Namespace, cluster: Cluster) -> int:
    """Runs the command in a process of its own that works with others; returns its exit status."""
    trains = options.run_command in (_pretrain, _finetune)
    advice = "Start the same command again on all hosts" + ("; it resumes from the last checkpoint" if trains else "")
    if (status := supervise(advice)) is not None:
        return status
    from jaxlm.parallel import connect, processes

    def run_command(options: argparse.Namespace) -> None:
        connect.connect(cluster, connect.patience(options.connect_timeout, options.heartbeat), stop_steps=trains)
        setup_logging(options.verbose, process=processes.process_index())
        with processes.error_boundary(advice):
            options.run_command(options)

    setup_logging(options.verbose)
    return processes.shutdown(_run(options, run_command))


def _run(options: argparse.Namespace, run_command: Callable[[argparse.Namespace], None]) -> int:
    """Runs a command; returns its exit status."""
    try:
        run_command(options)
    except UserError as error:
        return _fail("error", error, 2)
    except Interrupted as error:
        return _fail("interrupted", error, 3)
    except RunFailure as error:
        return _fail("failed", error, 1)
    except KeyboardInterrupt as error:
        return _fail("interrupted", str(error) or "nothing was saved", 3)
    except RuntimeError as error:
        if (absent := explain_absent(error)) is None:
            raise
        return _fail("error", absent, 2)
    except BrokenPipeError:  # the reader of our standard output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def run(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console program and of scripts/*.py: `main` in a process of its own."""
    command = next(iter(sys.argv[1:] if argv is None else argv), "")
    restart_with_settings(keep_memory=command in ("finetune", "bench"))
    sys.exit(main(argv))


def _fail(kind: str, message: Any, status: int) -> int:
    print(printable(f"{kind}: {message}"), file=sys.stderr)
    return status


def _pretrain(options: argparse.Namespace) -> None:
    _train(options, pretraining=True)


def _finetune(options: argparse.Namespace) -> None:
    _train(options, pretraining=False)


def _train(options: argparse.Namespace, *, pretraining: bool) -> None:
    from jaxlm.cost import topology

    absent = topology.requested(options.topology, options.overrides, dry_run=options.dry_run)
    if absent is not None:
        absent.set_environment()  # before anything imports JAX, as the tasks of the schema do
    from jaxlm.config.loading import load_config
    from jaxlm.tasks import TASKS

    load_plugins(options.plugin)

    config = load_config(Path(options.config), topology.other_overrides(options.overrides))
    if pretraining != (TASKS[config.task.kind].reads == "corpus"):
        right = "finetune" if pretraining else "pretrain"
        raise UserError(f"{options.config}: task.kind={config.task.kind} is for `jaxlm {right}`")
    if absent is not None:
        from jaxlm.cost.compile import dry_run_for

        print(printable(dry_run_for(config, absent)))
        return
    from jaxlm.report.format import score_lines
    from jaxlm.training.stages import run_chain, run_pretraining

    if options.dry_run:
        from jaxlm.cost.dryrun import dry_run

        _say(dry_run(run_pretraining(config)))
        return
    _say(score_lines(run_chain(config, command=options.command_line)))


def _say(text: str) -> None:
    """Prints a command's answer, of several processes on the first."""
    from jaxlm.parallel.processes import is_first

    if is_first():
        print(printable(text))


def _evaluate(options: argparse.Namespace) -> None:
    from jaxlm.inference.evaluate import evaluate_run

    load_plugins(options.plugin)
    scores = evaluate_run(options.run, split=options.split, data=options.data, overrides=options.overrides)
    _say(json.dumps(scores, indent=2, ensure_ascii=False))


def _predict(options: argparse.Namespace) -> None:
    from jaxlm.data.sources.files import check_file
    from jaxlm.inference.input_rows import open_input
    from jaxlm.inference.output import to_csv, to_jsonl, write_binary, write_output
    from jaxlm.inference.predict import open_predictor, predict_stream
    from jaxlm.inference.vector_files import check_suffix, vector_writer
    from jaxlm.parallel import processes

    load_plugins(options.plugin)
    if options.input == "-" and processes.is_multiprocess():
        raise UserError(
            "--input -: of several processes, only one has a standard input; expected a file that all can read"
        )
    if options.input != "-":
        check_file(Path(options.input), "--input")
        processes.assert_same(f"the contents of {options.input}", lambda: sha256(Path(options.input)))
    samples = {name: getattr(options, name) for name in ("tokens", "temperature", "top_k", "top_p")}
    policy = "skip" if options.on_bad_row == "error" else "stop"
    predictor = open_predictor(
        options.run,
        text=_columns(options.text),
        samples=samples,
        on_bad_row=policy,
        overrides=options.overrides,
    )
    table = {".csv": ",", ".tsv": "\t"}.get(Path(options.output).suffix)
    arrays = check_suffix(options.output, vectors=predictor.trained.setup.task.vectors)
    reading = {
        "columns": options.columns and tuple(options.columns),
        "separator": options.separator,
        "quoting": None if options.quoting is None else options.quoting == "true",
        "format": options.format,
    }
    with open_input(options.input, predictor.trained.setup.config, reading) as rows:
        answers = predict_stream(predictor, rows.records, rows.name)
        if processes.is_first() and arrays is not None:
            write_binary(options.output, lambda file: vector_writer(arrays)(answers, file))
        elif processes.is_first():
            write_output(options.output, to_jsonl(answers) if table is None else to_csv(answers, table))
        else:
            for _ in answers:
                pass


def _mark(text: str) -> str:
    mark = "\t" if text == "\\t" else text
    if len(mark) != 1:
        raise argparse.ArgumentTypeError(f"expected one character, found {text!r}")
    return mark


def _columns(text: list[str] | None) -> str | list[str] | None:
    if text is not None and len(text) > 2:
        raise UserError(f"--text: expected one or two columns, found {len(text)}")
    return text[0] if text and len(text) == 1 else text


def _convert(options: argparse.Namespace) -> None:
    from jaxlm.hf import convert

    load_plugins(options.plugin)
    if options.action == "inspect":
        if len(options.paths) != 1:
            raise UserError("convert inspect: expected one HF-format directory, run directory or hub id")
        print(printable(convert.inspect(options.paths[0])))
        return
    if len(options.paths) != 2:
        raise UserError("convert export: expected RUN_DIR HF_DIR")
    convert.export_run(options.paths[0], Path(options.paths[1]))
    log.info("wrote %s", options.paths[1])


def _train_tokenizer(options: argparse.Namespace) -> None:
    from jaxlm.setup.tokenizer_training import train_to_directory
    from jaxlm.tokenizer.config import TokenizerTrainingConfig

    given = {name: value for name, value in vars(options).items() if value is not None}
    for name, kinds in _OPTIONS_OF_TYPES.items():
        if name in given and options.type not in kinds:
            raise UserError(f"--{name.replace('_', '-')}: not for type {options.type}; only for {', '.join(kinds)}")
    if options.vocab_size is None and options.type != "char":
        raise UserError(f"--vocab-size: type {options.type} needs the size of the vocabulary")
    # Unchecked: training itself knows the smallest vocabulary of each type.
    settings = TokenizerTrainingConfig.model_construct(
        **{name: given[name] for name in TokenizerTrainingConfig.model_fields if name in given}
    )
    limit = {"max_sentences": options.max_sentences} if "max_sentences" in given else {}
    train_to_directory(options.input, Path(options.output), settings, column=options.column, **limit)


_OPTIONS_OF_TYPES = {
    "lowercase": ("wordpiece",),
    "min_frequency": ("wordpiece", "byte_bpe"),
    "max_sentences": ("unigram", "bpe"),
}


def _bench(options: argparse.Namespace) -> None:
    if options.suite == "corpus":
        from jaxlm.bench.corpus import bench_corpus

        print(bench_corpus(gigabytes=options.gigabytes))
        return
    if options.suite == "evaluation":
        from jaxlm.bench.evaluation import bench_evaluation

        print(bench_evaluation(rows=options.rows))
        return
    if options.suite == "scaling":
        from jaxlm.bench import scaling

        shared = {"steps": options.steps, "warmup": options.warmup}
        if options.worker:
            print(json.dumps(scaling.measure(options.preset, **shared)))
        else:
            print(scaling.bench_scaling(rounds=options.rounds, **shared))
        return
    from jaxlm.bench import finetune

    for name in ("model", "train"):
        if not Path(getattr(options, name)).exists():
            raise UserError(f"--{name}: no {getattr(options, name)}; see docs/data.md for where to get it")
    shared = {"steps": options.steps, "warmup": options.warmup, "dtype": options.dtype}
    if options.worker:
        batches = {"packing": not options.no_packing, "order": options.order, "seed": options.seed}
        figures = finetune.measure(options.model, options.train, **batches, **shared)
        print(json.dumps(figures))
        return
    print(finetune.bench(options.model, options.train, rounds=options.rounds, peer=options.peer, **shared))


def _add_plugins(command: argparse.ArgumentParser) -> None:
    text = "a Python file that registers a task or a model family; may be given several times"
    command.add_argument("--plugin", action="append", default=[], metavar="FILE", help=text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0; found {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jaxlm", description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="log debugging details")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run_command: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run_command=run_command)
        return sub

    for name, train in (("pretrain", _pretrain), ("finetune", _finetune)):
        text = "Pretrain" if name == "pretrain" else "Fine-tune"
        sub = command(name, train, f"{text} by a config; the same command resumes an unfinished run.")
        sub.add_argument("--config", required=True, metavar="FILE")
        sub.add_argument("--dry-run", action="store_true", help="check, build and compile one step, then stop")
        sub.add_argument(
            "--topology", metavar="KIND:SIZES",
            help="with --dry-run: compile for devices that are not here, for instance v5e:2x4, v5p:4x4x4 or h200:8",
        )  # fmt: skip
        sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="override a key of the config")

    sub = command("evaluate", _evaluate, "Score a finished run on a split of its config or on a file.")
    sub.add_argument("--run", required=True, metavar="RUN_DIR")
    sub.add_argument("--split", choices=("train", "validation", "test"), default=None)
    sub.add_argument("--data", metavar="FILE", help="a labelled file with the columns of the run's config")
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="override a key of the run's config")

    sub = command(
        "predict", _predict, "Answer rows: jsonl, csv, tsv or parquet in, the same rows and `prediction` out."
    )
    sub.add_argument("--run", required=True, metavar="RUN_OR_HF_DIR")
    sub.add_argument("--input", required=True, metavar="FILE|-")
    sub.add_argument(
        "--output",
        required=True,
        metavar="FILE|-",
        help="jsonl, or by its name .csv, .tsv; vectors also .npz, .parquet",
    )
    sub.add_argument("--columns", nargs="+", metavar="NAME", help="columns of a csv or tsv input without a header")
    sub.add_argument("--separator", type=_mark, metavar="MARK", help="between the fields of a csv or tsv input")
    sub.add_argument("--quoting", choices=("true", "false"), help="whether double quotes enclose fields")
    sub.add_argument(
        "--format", choices=("jsonl", "csv", "tsv", "parquet", "squad"), help="of an input whose name does not tell"
    )
    sub.add_argument(
        "--on-bad-row", choices=("error", "stop"), default="error", help="write an `error` into its line, or stop"
    )
    sub.add_argument("--text", nargs="+", metavar="COLUMN", help="text columns for a bare HF directory (default: text)")
    sub.add_argument("--tokens", type=int, metavar="N", help="language models: tokens written, at most")
    sub.add_argument("--temperature", type=float, metavar="T", help="language models: 0 always takes the likeliest")
    sub.add_argument("--top-k", type=int, metavar="K", help="language models: draw from the K likeliest tokens")
    sub.add_argument("--top-p", type=float, metavar="P", help="language models: draw from P of the probability")
    text = "override how the run computes: mesh, dtype, attention"
    sub.add_argument("overrides", nargs="*", metavar="mesh.key=value", help=text)

    for sub in commands.choices.values():
        _add_plugins(sub)
        hosts = sub.add_argument_group(
            "several processes", "one command to a host; not needed on SLURM and Cloud TPU (docs/scaling.md)"
        )
        hosts.add_argument("--coordinator", metavar="HOST:PORT", help="where the first process listens")
        hosts.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
        hosts.add_argument("--process-id", type=int, metavar="I", help="number of this one, from 0")
        text = "wait for all processes (default: 60, or JAXLM_CONNECT_TIMEOUT)"
        hosts.add_argument("--connect-timeout", type=int, metavar="SECONDS", help=text)
        text = "silence after which a process counts as dead (default: 100, or JAXLM_HEARTBEAT)"
        hosts.add_argument("--heartbeat", type=int, metavar="SECONDS", help=text)

    sub = command("convert", _convert, "Export a run in HF format, or show what a checkpoint holds.")
    _add_plugins(sub)
    sub.add_argument("action", choices=("export", "inspect"))
    sub.add_argument("paths", nargs="+", metavar="DIR")

    sub = command("train-tokenizer", _train_tokenizer, "Learn a vocabulary from files; writes an HF directory.")
    sub.add_argument("--input", nargs="+", required=True, metavar="FILE", help="text, .jsonl, .parquet; also .gz, .zst")
    sub.add_argument("--type", choices=("unigram", "bpe", "wordpiece", "byte_bpe", "char"), required=True)
    sub.add_argument("--vocab-size", type=_positive, metavar="N", help="most tokens (char: default all characters)")
    sub.add_argument("--output", required=True, metavar="DIR")
    sub.add_argument("--family", help="whose special tokens (default by type: t5, llama, bert, gpt2)")
    sub.add_argument("--lowercase", action=argparse.BooleanOptionalAction, help="wordpiece (default: lower case)")
    sub.add_argument("--min-frequency", type=_positive, metavar="N", help="wordpiece, byte_bpe (default: 2)")
    sub.add_argument("--column", default="text", help="of .jsonl and .parquet (default: text)")
    sub.add_argument("--max-sentences", type=_positive, metavar="N", help="unigram, bpe: most pieces to learn from")

    sub = command("bench", _bench, "Speed of fine-tuning, of a corpus, of fake devices; memory of an evaluation.")
    sub.add_argument("--suite", choices=("finetune", "corpus", "evaluation", "scaling"), default="finetune")
    sub.add_argument("--rows", type=_positive, default=200_000, help="evaluation: rows of the split")
    sub.add_argument("--gigabytes", type=float, default=1.0, help="corpus: size of the text that is tokenized and read")
    sub.add_argument("--peer", action="store_true", help="the Transformers Trainer beside it (extra: parity)")
    sub.add_argument("--model", default="models/minilm", metavar="HF_DIR")
    sub.add_argument("--train", default="data/classification/sst2/train.tsv", metavar="TSV")
    sub.add_argument("--steps", type=int, default=50)
    sub.add_argument("--warmup", type=int, default=10)
    sub.add_argument("--rounds", type=int, default=3)
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    sub.add_argument("--worker", action="store_true", help="one measurement in this process, as JSON")
    sub.add_argument("--no-packing", action="store_true", help="with --worker: pad instead of packing")
    sub.add_argument("--preset", default="ddp", help="scaling, with --worker: mesh preset over this process's devices")
    sub.add_argument(
        "--order", choices=("random", "balanced"), default="random", help="with --worker: data.batch_order"
    )
    sub.add_argument("--seed", type=int, default=0)
    return parser
