"""What of a run directory is the same for two runs that trained alike."""

from __future__ import annotations

from pathlib import Path

from helpers.finetuning_runs import read_jsonl


def record(run: Path) -> list[dict]:
    """metrics.jsonl without the values that depend on time."""
    timed = ("time", "tokens_per_s", "examples_per_s")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_jsonl(run / "metrics.jsonl")]


def results(run: Path) -> dict[str, bytes]:
    """Contents of the exported model and of the predictions, by name."""
    files = [*(run / "model").glob("*.safetensors"), run / "model/tokenizer.json", *(run / "predictions").glob("*")]
    return {path.name: path.read_bytes() for path in files}
