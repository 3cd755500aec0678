"""What each command of the command line does, given its options."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from jaxlm.bench.suites import run_suite
from jaxlm.console import printable
from jaxlm.errors import UserError
from jaxlm.files import sha256
from jaxlm.plugins import load_plugins

log = logging.getLogger("jaxlm")


def pretrain(options: argparse.Namespace) -> None:
    _train(options, "pretrain")


def finetune(options: argparse.Namespace) -> None:
    _train(options, "finetune")


def _train(options: argparse.Namespace, kind: str) -> None:
    from jaxlm.cost import topology

    absent = topology.requested(options.topology, options.overrides, dry_run=options.dry_run)
    if options.profile and options.topology is None:
        raise UserError("--profile: expected --dry-run --topology KIND:SIZES beside it")
    if absent is not None:
        absent.set_environment()  # before anything imports JAX, as the tasks of the schema do
    from jaxlm.api.training import check_kind, train
    from jaxlm.config.loading import load_config

    load_plugins(options.plugin)
    config = load_config(Path(options.config), topology.other_overrides(options.overrides))
    check_kind(config, kind, options.config)
    if absent is not None:
        from jaxlm.cost.compile import dry_run_for

        print(printable(dry_run_for(config, absent, profile=options.profile)))
    elif options.dry_run:
        from jaxlm.cost.dryrun import dry_run
        from jaxlm.training.repeats import repeats
        from jaxlm.training.settings import check_directory
        from jaxlm.training.stages import run_pretraining

        check_directory(config)
        first, *others = repeats(run_pretraining(config))
        _say(dry_run(first) + (f"\n{len(others)} more runs like it" if others else ""))
    else:
        _say(train(config, kind, options.config, command=options.command_line).lines())


def init(options: argparse.Namespace) -> None:
    from jaxlm.new_config.templates import template_lines, template_text
    from jaxlm.new_config.writing import config_for

    given = [name for name in ("train", "template", "list") if getattr(options, name)]
    if len(given) != 1:
        raise UserError("init: expected one of --train FILE, --template NAME and --list")
    beside = next((name for name in ("task", "model", "validation") if getattr(options, name)), None)
    if options.train is None and beside is not None:
        raise UserError(f"--{beside}: only with --train FILE, which the config is written for")
    if options.list:
        print(printable(template_lines()))
    elif options.template is not None:
        print(template_text(options.template), end="")
    elif options.train is not None:
        print(config_for(options.train, options.validation or (), task=options.task, model=options.model), end="")


def check(options: argparse.Namespace) -> None:
    from jaxlm.check.check import check_data
    from jaxlm.check.page import check_lines, write_check_page
    from jaxlm.config.loading import load_config
    from jaxlm.inference.output import write_output

    load_plugins(options.plugin)
    found = check_data(load_config(Path(options.config), options.overrides))
    if options.html is not None:
        write_check_page(Path(options.html), found)
        log.info("wrote %s", options.html)
    if options.json is not None:
        write_output(options.json, [json.dumps(found.json(), indent=2, ensure_ascii=False) + "\n"])
    if options.json != "-":
        _say(check_lines(found))
    if found.refusals:
        raise UserError("a run would refuse this:\n" + "\n".join(found.refusals))


def sweep(options: argparse.Namespace) -> None:
    from jaxlm.config.loading import load_config
    from jaxlm.sweep.results import sweep_lines
    from jaxlm.sweep.space import load_space
    from jaxlm.sweep.study import import_optuna
    from jaxlm.sweep.sweep import BEST, Search, run_sweep

    import_optuna()
    load_plugins(options.plugin)
    config = load_config(Path(options.config), options.overrides)
    space = load_space(Path(options.space), config)
    search = Search(space, options.trials, options.seed, options.pruning)
    summary = run_sweep(config, search, command=options.command_line)
    _say(sweep_lines(summary))
    log.info("the best is trial %d: %s", summary["best"], Path(config.logging.directory) / summary["name"] / BEST)


def _say(text: str) -> None:
    """Prints a command's answer, of several processes on the first."""
    from jaxlm.parallel.processes import is_first

    if is_first():
        print(printable(text))


def evaluate(options: argparse.Namespace) -> None:
    from jaxlm.inference.evaluate import evaluate_run
    from jaxlm.inference.slices import Slicing

    load_plugins(options.plugin)
    slicing = Slicing(options.slice, options.resamples) if options.slice else None
    scores = evaluate_run(
        options.run, split=options.split, data=options.data, slicing=slicing, overrides=options.overrides
    )
    _say(json.dumps(scores, indent=2, ensure_ascii=False))


def predict(options: argparse.Namespace) -> None:
    from jaxlm.api.loaded import open_model
    from jaxlm.data.sources.files import check_file
    from jaxlm.inference.answer_progress import counted
    from jaxlm.inference.input_rows import open_input
    from jaxlm.inference.output import check_output, to_csv, to_jsonl, write_binary, write_output
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
    check_output(options.output, options.input)
    model = open_model(
        options.run,
        text=_columns(options.text),
        on_bad_row=options.on_bad_row,
        overrides=options.overrides,
    )
    setup = model.predictor.trained.setup
    suffix = Path(options.output).suffix
    arrays = check_suffix(options.output, vectors=setup.task.vectors)
    reading = {
        "columns": options.columns and tuple(options.columns),
        "separator": options.separator,
        "quoting": None if options.quoting is None else options.quoting == "true",
        "encoding": options.encoding,
        "format": options.format,
    }
    with open_input(options.input, setup.config, reading) as rows:
        answers = model.stream(rows.records, rows.name)
        if processes.is_first():
            answers = counted(answers, options.output)
        if processes.is_first() and arrays is not None:
            write_binary(options.output, lambda file: vector_writer(arrays)(answers, file))
        elif processes.is_first():
            # A csv with semicolons gets one with semicolons back: what wrote the one reads the other.
            table = {".csv": rows.separator or ",", ".tsv": "\t"}.get(suffix)
            if table is None and options.output != "-" and suffix not in (".jsonl", ".ndjson", ".json", ""):
                log.info("%s: jsonl is written, a line to a row, whatever the name ends in", options.output)
            write_output(options.output, to_jsonl(answers) if table is None else to_csv(answers, table))
        else:
            for _ in answers:
                pass


def augment(options: argparse.Namespace) -> None:
    from jaxlm.config.loading import load_config
    from jaxlm.inference.augment import Rewriting, augment

    load_plugins(options.plugin)
    config = load_config(Path(options.config), options.overrides)
    given = {name: value for name in Rewriting._fields if (value := getattr(options, name)) is not None}
    augment(config, Rewriting(**{**given, "generation": tuple(options.generation)}), options.output)


def generate(options: argparse.Namespace) -> None:
    from jaxlm.inference.predict import open_predictor
    from jaxlm.inference.terminal import converse

    load_plugins(options.plugin)
    converse(open_predictor(options.run, text=_columns(options.text), overrides=options.overrides))


def _columns(text: list[str] | None) -> str | list[str] | None:
    if text is not None and len(text) > 2:
        raise UserError(f"--text: expected one or two columns, found {len(text)}")
    return text[0] if text and len(text) == 1 else text


def convert(options: argparse.Namespace) -> None:
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


def push(options: argparse.Namespace) -> None:
    from jaxlm.hf.push import push

    print(printable(push(options.run, options.hub_id, private=options.private, revision=options.revision)))


def train_tokenizer(options: argparse.Namespace) -> None:
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


def bench(options: argparse.Namespace) -> None:
    run_suite(options)
