"""The suites of `jaxlm bench`, by name: each prints what its module measures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError


def finetune(options: argparse.Namespace) -> None:
    from jaxlm.bench import finetune

    for name in ("model", "train"):
        if not Path(getattr(options, name)).exists():
            raise UserError(f"--{name}: no {getattr(options, name)}; see docs/data.md for where to get it")
    shared = {**_steps(options), "dtype": options.dtype}
    if options.worker:
        batches = {"packing": not options.no_packing, "order": options.order, "seed": options.seed}
        print(json.dumps(finetune.measure(options.model, options.train, **batches, **shared)))
    else:
        print(finetune.bench(options.model, options.train, rounds=options.rounds, peer=options.peer, **shared))


def config(options: argparse.Namespace) -> None:
    from jaxlm.bench import config_speed

    path = Path(_given(options, "config", "FILE"))
    if options.worker:
        print(json.dumps(config_speed.measure(path, seed=options.seed, **_steps(options))))
    else:
        peer = {"peer": options.peer, "peer_model": options.peer_model}
        print(config_speed.bench_config(path, rounds=options.rounds, **peer, **_steps(options)))


def generation(options: argparse.Namespace) -> None:
    from jaxlm.bench import generation

    path = Path(_given(options, "input", "JSONL"))
    settings = {name: getattr(options, name) for name in ("texts", "num_beams", "max_new_tokens")}
    if options.worker:
        print(json.dumps(generation.measure(options.model, path, **settings)))
    else:
        made = generation.bench_generation(options.model, path, rounds=options.rounds, peer=options.peer, **settings)
        print(made)


def corpus(options: argparse.Namespace) -> None:
    from jaxlm.bench.corpus import bench_corpus

    print(bench_corpus(gigabytes=options.gigabytes))


def evaluation(options: argparse.Namespace) -> None:
    from jaxlm.bench.evaluation import bench_evaluation

    print(bench_evaluation(rows=options.rows))


def scaling(options: argparse.Namespace) -> None:
    from jaxlm.bench import scaling

    if options.worker:
        print(json.dumps(scaling.measure(options.preset, **_steps(options))))
    else:
        print(scaling.bench_scaling(rounds=options.rounds, **_steps(options)))


SUITES: dict[str, Callable[[argparse.Namespace], None]] = {
    suite.__name__: suite for suite in (finetune, config, generation, corpus, evaluation, scaling)
}


def _steps(options: argparse.Namespace) -> dict[str, Any]:
    return {"steps": options.steps, "warmup": options.warmup}


def _given(options: argparse.Namespace, name: str, kind: str) -> str:
    """The value of an option that the suite cannot do without."""
    value = getattr(options, name)
    if value is None:
        raise UserError(f"--suite {options.suite}: needs --{name} {kind}")
    return value
