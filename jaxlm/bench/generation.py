"""`jaxlm bench --suite generation`: texts a second that a model writes, `generate` of Transformers beside it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxlm.bench.harness import peer_script, plain_environ, run_measurement, take_turns
from jaxlm.bench.record import Comparison
from jaxlm.errors import UserError
from jaxlm.inference.predict import open_predictor


def read_texts(path: Path, limit: int) -> list[dict[str, Any]]:
    """The first rows of a jsonl file.

    Raises:
      UserError: no such file, or a row without a text.
    """
    if not path.is_file():
        raise UserError(f'--input: no file {path}; expected jsonl with {{"text": ...}}')
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    except ValueError:  # no JSON, or no UTF-8
        rows = []
    if any(not isinstance(row, dict) or not isinstance(row.get("text"), str) for row in rows) or not rows:
        raise UserError(f'--input: {path}: expected rows of {{"text": ...}}')
    return rows


def measure(model: str, path: Path, *, texts: int, num_beams: int, max_new_tokens: int) -> dict[str, Any]:
    """Writes a continuation of each text twice in this process, and times both: the first compiles.

    Args:
      model: an HF-format directory of a model that writes.
    """
    overrides = [f"generation.num_beams={num_beams}", f"generation.max_new_tokens={max_new_tokens}"]
    predictor = open_predictor(model, text="text", overrides=[*overrides, "generation.do_sample=false"])
    rows = read_texts(path, texts)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        predictor.predict(rows, str(path))
        seconds.append(time.perf_counter() - start)
    return {
        "texts_per_second": len(rows) / seconds[1],
        "seconds": seconds[1],
        "first_seconds": seconds[0],
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def bench_generation(
    model: str, path: Path, *, rounds: int, texts: int, num_beams: int, max_new_tokens: int, peer: bool
) -> Comparison:
    """Runs the contenders in turn, `rounds` times; returns what they measured.

    Raises:
      UserError: no such file, or rows without texts.
      RunFailure: a contender failed.
    """
    read_texts(path, texts)
    settings = ["--model", model, "--input", str(path), "--num-beams", str(num_beams)]
    settings += ["--max-new-tokens", str(max_new_tokens)]
    own = [sys.executable, "-m", "jaxlm", "bench", "--suite", "generation", "--worker", "--texts", str(texts)]
    contenders = {"jaxlm": own}
    if peer:
        script = str(peer_script("transformers_generate.py"))
        contenders["Transformers generate"] = [sys.executable, script, "--json", "--limit", str(texts)]

    def measuring(command: list[str]) -> Callable[[int], dict[str, Any]]:
        return lambda _: run_measurement([*command, *settings], plain_environ())

    results = take_turns({name: measuring(command) for name, command in contenders.items()}, rounds)
    return Comparison(results, "texts")
