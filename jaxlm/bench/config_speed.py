"""`jaxlm bench --suite config`: the speed of a config's training, and beside it the Transformers Trainer's, or in
pretraining that of a plain torch loop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxlm.bench.harness import TUNED, peer_script, plain_environ, run_measurement, take_turns
from jaxlm.bench.record import Comparison
from jaxlm.bench.training_step import time_steps
from jaxlm.config.loading import load_config
from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.parallel.chips import cpu_multiplies_bfloat16

_WRITERS = ("translation", "summarization", "text_to_text")
_PEERS = {
    "tagging": "transformers_tagging.py",
    "question_answering": "transformers_question_answering.py",
    **dict.fromkeys(_WRITERS, "transformers_seq2seq.py"),
}
_PEER_OPTIMIZERS = ("adamw", "adafactor")


def measure(path: Path, *, steps: int, warmup: int, seed: int, matmul: str = "auto") -> dict[str, Any]:
    """Times training steps of a config in this process; see `time_steps`.

    Args:
      matmul: `model.matmul`; auto: the config's own.
    """
    # A warm-up of the learning rate may be longer than what is timed, whose speed it does not change.
    overrides = [f"train.steps={steps + warmup}", "train.epochs=null", f"seed={seed}", "optimizer.warmup=0"]
    overrides += [] if matmul == "auto" else [f"model.matmul={matmul}"]
    return time_steps(load_config(path, overrides), steps=steps, warmup=warmup)


def bench_config(
    path: Path, *, rounds: int, steps: int, warmup: int, peer: bool, peer_model: str | None = None
) -> Comparison:
    """Runs the contenders in turn, `rounds` times; returns what they measured: examples, of which windows of
    long rows are one each; of encoder-decoders, tokens of targets; of pretraining, tokens.

    Args:
      peer_model: HF-format directory with the network and tokenizer of a config that begins with random parameters.
    Raises:
      UserError: no such config, or a peer was asked for that its task has not.
      RunFailure: a contender failed.
    """
    own = [sys.executable, "-m", "jaxlm", "bench", "--suite", "config", "--config", str(path), "--worker"]
    contenders = {"jaxlm": (own, steps)}
    config = load_config(path)  # a mistake in it is the user's, not a worker's failure
    if peer:  # which counts its warm-up in
        if config.task.kind == "causal_lm":
            command = _torch_loop(config)
            if TUNED and cpu_multiplies_bfloat16():  # where `model.matmul: auto` rounds the operands of products
                contenders["jaxlm, products of float32"] = [*own, "--matmul", "float32"], steps
                contenders["torch, bf16 autocast"] = [*command, "--precision", "bf16"], steps + warmup
            contenders["torch"] = command, steps + warmup
            contenders["torch, compiled"] = [*command, "--compile"], steps + warmup
        else:
            contenders["Trainer"] = _trainer(config, peer_model), steps + warmup

    def measuring(command: list[str], total: int) -> Callable[[int], dict[str, Any]]:
        counts = ["--steps", str(total), "--warmup", str(warmup), "--seed"]
        return lambda number: run_measurement([*command, *counts, str(number)], plain_environ())

    results = take_turns({name: measuring(*contender) for name, contender in contenders.items()}, rounds)
    counted = ("target_tokens", "examples", "tokens")
    return Comparison(results, next(unit for unit in counted if f"{unit}_per_second" in results["jaxlm"][0]))


def _torch_loop(config: Config) -> list[str]:
    """The command of the torch loop on the settings of a config, whose dropout has one rate."""
    model, train, optimizer = config.model, config.data.train, config.optimizer
    path = None if train is None else train.path
    tokenizer = model.train_tokenizer
    if model.family != "gpt2" or tokenizer is None or tokenizer.type != "char" or not isinstance(path, str):
        raise UserError("--peer: pretraining has a peer for model.family=gpt2 on the characters of one file "
                        "(model.train_tokenizer={type: char})")  # fmt: skip
    names = ("num_layers", "num_heads", "embed_dim", "mlp_dim", "dropout")
    if missing := [name for name in names if name not in model.config]:
        raise UserError(f"--peer: expected {', '.join(missing)} in model.config, which the peer is built from")
    sizes = {name: model.config[name] for name in names}
    options = {
        **sizes,
        "train": path,
        "max_length": config.data.max_length,
        "batch_size": config.train.batch_size,
        "learning_rate": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
        "b2": optimizer.b2,
    }
    given = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, str(peer_script("torch_causal_lm.py")), "--json", *given]


def _trainer(config: Config, peer_model: str | None) -> list[str]:
    """The command of the Trainer on the settings of a config."""
    kind = config.task.kind
    if kind not in _PEERS:
        raise UserError(f"--peer: task.kind={kind} has no peer; expected one of {', '.join(_PEERS)}")
    model, train = config.model.init or peer_model, config.data.train
    if model is None:
        raise UserError("--peer: this config begins with random parameters; expected --peer-model HF_DIR beside it")
    if config.optimizer.name not in _PEER_OPTIMIZERS:
        raise UserError(
            f"--peer: optimizer.name={config.optimizer.name}: the peers have {' and '.join(_PEER_OPTIMIZERS)}"
        )
    path = None if train is None else train.path
    files = list(path.values()) if isinstance(path, Mapping) else []
    if not isinstance(path, str) and not (len(files) == 2 and all(isinstance(file, str) for file in files)):
        raise UserError("--peer: expected one file in data.train, or two of parallel texts")
    options = {
        "model": model,
        "max-length": config.data.max_length,
        "batch-size": config.train.batch_size,
        "learning-rate": config.optimizer.learning_rate,
        "weight-decay": config.optimizer.weight_decay,
        "optimizer": config.optimizer.name,
    }
    options |= {"train": path} if isinstance(path, str) else dict(zip(("train", "train-target"), files, strict=True))
    if prefix := getattr(config.task, "prefix", ""):
        options["prefix"] = prefix
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    if config.model.init is None:
        given.append("--random-weights")
    return [sys.executable, str(peer_script(_PEERS[kind])), "--json", *given]
