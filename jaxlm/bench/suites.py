"""The suites of `jaxlm bench`, by name: each prints what its module measures."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.errors import UserError

if TYPE_CHECKING:
    from jaxlm.bench.record import Comparison, Measurement


def finetune(options: argparse.Namespace) -> None:
    from jaxlm.bench import finetune

    _check_model_and_rows(options)
    if options.worker:
        model = {"init": options.model, "dtype": options.dtype, "matmul": options.matmul}
        data = {"train": options.train, "max_length": options.max_length}
        data |= {"packing": not options.no_packing, "batch_order": options.order}
        print(json.dumps(finetune.measure(model, data, seed=options.seed, **_steps(options))))
    else:
        shared = {"dtype": options.dtype, "peer": options.peer, **_steps(options)}
        job = {name: getattr(options, name) for name in ("model", "train", "max_length")}
        made = finetune.bench(job, rounds=options.rounds, **shared)
        _keep(options, made, f"{Path(options.model).name} on {Path(options.train).parent.name}, {options.dtype}")


def config(options: argparse.Namespace) -> None:
    from jaxlm.bench import config_speed

    path = Path(_given(options, "config", "FILE"))
    if options.worker:
        print(json.dumps(config_speed.measure(path, seed=options.seed, matmul=options.matmul, **_steps(options))))
    else:
        peer = {"peer": options.peer, "peer_model": options.peer_model}
        _keep(options, config_speed.bench_config(path, rounds=options.rounds, **peer, **_steps(options)), path.stem)


def generation(options: argparse.Namespace) -> None:
    from jaxlm.bench import generation

    path = Path(_given(options, "input", "JSONL"))
    settings = {name: getattr(options, name) for name in ("texts", "num_beams", "max_new_tokens")}
    if options.worker:
        print(json.dumps(generation.measure(options.model, path, **settings)))
    else:
        made = generation.bench_generation(options.model, path, rounds=options.rounds, peer=options.peer, **settings)
        _keep(options, made, f"{Path(options.model).name}, {options.num_beams} beams")


def corpus(options: argparse.Namespace) -> None:
    from jaxlm.bench.corpus import bench_corpus

    _keep(options, bench_corpus(gigabytes=options.gigabytes))


def evaluation(options: argparse.Namespace) -> None:
    from jaxlm.bench.evaluation import bench_evaluation

    _keep(options, bench_evaluation(rows=options.rows))


def rows(options: argparse.Namespace) -> None:
    from jaxlm.bench.rows import bench_rows

    _check_model_and_rows(options)
    shared = {"rows": options.rows, "max_length": options.max_length, **_steps(options)}
    _keep(options, bench_rows(options.model, options.train, **shared))


def startup(options: argparse.Namespace) -> None:
    from jaxlm.bench.startup import bench_startup

    _check_model_and_rows(options)
    model = {"family": "bert", "preset": "base", "tokenizer": options.model}
    _keep(options, bench_startup(model, options.train, rounds=options.rounds))


def scaling(options: argparse.Namespace) -> None:
    from jaxlm.bench import scaling

    if options.worker:
        print(json.dumps(scaling.measure(options.preset, **_steps(options))))
    else:
        _keep(options, scaling.bench_scaling(rounds=options.rounds, **_steps(options)))


SUITES: dict[str, Callable[[argparse.Namespace], None]] = {
    suite.__name__: suite for suite in (finetune, config, generation, corpus, rows, evaluation, startup, scaling)
}
_OF_SOME = {
    **dict.fromkeys(("peer", "log"), ("finetune", "config", "generation")),
    "peer_model": ("config",),
    "dtype": ("finetune",),
}
"""Option -> the suites that take it."""


def run_suite(options: argparse.Namespace) -> None:
    """Runs the suite that the options name.

    Raises:
      UserError: an option that it does not take, or a file that could not be written in the end.
      RunFailure: a measurement failed.
    """
    for name, suites in _OF_SOME.items():
        if options.suite not in suites and getattr(options, name) not in (None, False, "float32"):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"--suite {options.suite}: takes no {flag}; expected --suite {' or '.join(suites)} with it")
    for name in ("out", "log"):
        if (file := getattr(options, name)) is not None:
            _check_place(f"--{name}", Path(file))
    SUITES[options.suite](options)


def _check_place(flag: str, path: Path) -> None:
    """Refuses a file that could not be written, before anything is measured."""
    if path.is_dir() or not path.parent.is_dir():
        found = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UserError(f"{flag} {path}: {found}; expected a file in a folder that is there")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{flag} {path}: may not be written; choose another")


def _keep(options: argparse.Namespace, found: Comparison | Measurement, measured: str = "") -> None:
    """Prints the table of what was found, and keeps the figures where the options say."""
    from jaxlm.bench.harness import speed_table
    from jaxlm.bench.record import Measurement, append_lines, describe, write_json

    print(found.table if isinstance(found, Measurement) else speed_table(found))
    if options.out is None and options.log is None:
        return
    record = describe(found, options.suite, options.command_line)
    try:
        if options.out is not None:
            write_json(Path(options.out), record)
    finally:
        if options.log is not None:
            append_lines(Path(options.log), record, measured)


def _check_model_and_rows(options: argparse.Namespace) -> None:
    for name, kind, there in (("model", "folder", Path.is_dir), ("train", "file", Path.is_file)):
        if not there(Path(getattr(options, name))):
            where = "see docs/guides/data.md for where to get it"
            raise UserError(f"--{name}: no {kind} {getattr(options, name)}; {where}")


def _steps(options: argparse.Namespace) -> dict[str, Any]:
    return {"steps": options.steps, "warmup": options.warmup}


def _given(options: argparse.Namespace, name: str, kind: str) -> str:
    """The value of an option that the suite cannot do without."""
    value = getattr(options, name)
    if value is None:
        raise UserError(f"--suite {options.suite}: needs --{name} {kind}")
    return value
