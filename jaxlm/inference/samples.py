"""Texts that a model writes while it is trained, for the log and the report."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.data.corpus.dataset import CorpusDataset
from jaxlm.inference.generate import generate
from jaxlm.models import Model
from jaxlm.parallel import processes
from jaxlm.run.run_dir import RunDir
from jaxlm.setup.generation_checks import room_for_prompt
from jaxlm.setup.setup import Setup
from jaxlm.tasks.language_model import TextWriter
from jaxlm.tasks.records import Generation
from jaxlm.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("jaxlm")

FILE = "samples.jsonl"
_PROMPT_TOKENS = 8


@dataclass(frozen=True)
class Sampler:
    """Continues the same prompts at each evaluation, with the same seed."""

    model: Model
    tokenizer: Tokenizer
    settings: Generation
    prompts: tuple[tuple[int, ...], ...]

    @classmethod
    def from_setup(cls, setup: Setup) -> Sampler | None:
        """The sampler of a run; None for a model that writes no text, or a config that asks for no sample."""
        task = setup.task
        if not isinstance(task, TextWriter) or setup.model.family.init_cache is None:
            return None
        samples = task.config.samples
        if samples.prompts:
            prompts = [setup.tokenizer.encode_prompt(text) for text in samples.prompts]
        else:
            prompts = _beginnings(setup, samples.number)
        longest = room_for_prompt(setup.model, task.generation)
        prompts = [prompt[-longest:] for prompt in prompts if prompt and longest > 0]
        if not prompts:
            return None
        return cls(setup.model, setup.tokenizer, task.generation, tuple(map(tuple, prompts)))

    def write(self, params: Any, step: int) -> list[dict[str, Any]]:
        """Returns {"step", "prompt", "text"} of each prompt, `text` being the continuation alone."""
        written = generate(self.model, params, self.prompts, self.settings, pad_id=self.tokenizer.pad_id or 0)
        return [
            {
                "step": step,
                "prompt": self.tokenizer.decode(prompt),
                "text": self.tokenizer.continuation(prompt, texts[0].tokens),
            }
            for prompt, texts in zip(self.prompts, written, strict=True)
        ]


def save_samples(run: RunDir, samples: Sequence[dict[str, Any]]) -> None:
    """Adds samples to the run's samples.jsonl; those of a step that ran before replace it."""
    if not processes.is_first():
        return
    path = run.path / FILE
    lines = path.read_text("utf-8", errors="replace").split("\n") if path.is_file() else []
    earlier = [line for line in lines if 0 <= _step(line) < samples[0]["step"]]
    if lost := len([line for line in lines if line]) - len([line for line in lines if _step(line) >= 0]):
        log.warning("%s: %d lines are damaged, and are left out", path, lost)
    new = [json.dumps(sample, ensure_ascii=False) for sample in samples]
    run.write_text(FILE, "".join(f"{line}\n" for line in [*earlier, *new]))


def _step(line: str) -> int:
    """The step of a line of samples.jsonl; -1 if it is not what was written."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return -1


def _beginnings(setup: Setup, number: int) -> list[list[int]]:
    """The first tokens of the first held-out (else training) documents."""
    dataset = setup.datasets.get("validation") or setup.datasets["train"]
    return dataset.beginnings(number, _PROMPT_TOKENS) if isinstance(dataset, CorpusDataset) else []
