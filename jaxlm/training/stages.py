"""Runs that need other runs: the pretraining that `model.init` names, and the same network from scratch."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from jaxlm.config.loading import load_config
from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.hf.opening import open_model
from jaxlm.training.loop import run_training
from jaxlm.training.repeats import is_repeated, run_repeats
from jaxlm.training.run import AfterEvaluation, ignore

log = logging.getLogger("jaxlm")


def run_chain(config: Config, *, command: str = "", after_evaluation: AfterEvaluation = ignore) -> dict[str, Any]:
    """Runs the stages that a config needs, unless they are finished, then the config itself; returns its summary.

    Args:
      command: what the user typed, for the summary.
      after_evaluation: hears of each evaluation of the config's own run, where it is one.

    Raises:
      UserError, RunFailure, Interrupted: as `run_training`, of any of these runs.
    """
    config = run_pretraining(config)
    if is_repeated(config):
        return run_repeats(config, lambda one: run_training(one, command=command), command=command)
    reference_scores = {}
    if config.train.scratch_baseline:
        scratch = run_training(scratch_config(config))
        scores = next((scratch["scores"][split] for split in ("test", "validation") if split in scratch["scores"]), {})
        reference_scores = {"from scratch": scores}
    return run_training(config, command=command, reference_scores=reference_scores, after_evaluation=after_evaluation)


def run_pretraining(config: Config) -> Config:
    """Runs the config file that `model.init` names, unless it is finished; returns `config` with that run as `init`.

    A config whose `model.init` is no config file is returned as it is.
    """
    init = config.model.init_config
    if init is None:
        return config
    first = load_config(init, [f"logging.directory={config.logging.directory}"])
    if first.name == config.name:
        raise UserError(f"model.init={init}: both runs are called {first.name!r}; give one another name")
    summary = run_training(run_pretraining(first))
    log.info("model.init: %s, %d steps", first.name, summary["steps"])
    run = str(Path(first.logging.directory) / first.name)
    return config.model_copy(update={"model": config.model.model_copy(update={"init": run})})


def scratch_config(config: Config) -> Config:
    """Returns the config of the same run from random parameters, with the checkpoint's architecture and tokenizer.

    Raises:
      UserError: the run starts from random parameters anyway.
    """
    if config.model.init is None:
        raise UserError("train.scratch_baseline: the run itself starts from scratch; expected model.init")
    revision = config.model.commit or config.model.revision
    checkpoint = open_model(config.model.init, key="model.init", revision=revision, base=config.model.base)
    sizes = dataclasses.asdict(checkpoint.model_config)
    fresh = {"init": None, "revision": None, "commit": None, "family": checkpoint.family.name, "config": sizes}
    fresh |= {"base": None, "lora": None, "ia3": None, "bitfit": False}
    # All of it is trained, and nothing is pretrained that could be frozen or fallen back on.
    fresh |= {"freeze": (), "frozen_dtype": "float32", "mixout": 0.0, "reinit_layers": 0}
    model = config.model.model_copy(update={**fresh, "tokenizer": str(checkpoint.directory)})
    train = config.train.model_copy(update={"scratch_baseline": False})
    return config.model_copy(update={"name": f"{config.name}-scratch", "model": model, "train": train})
