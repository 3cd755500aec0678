"""Text that a generative model writes while it is trained, for the log and the report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from jaxlm.data.corpus.dataset import CorpusSplit
from jaxlm.inference.generate import generate
from jaxlm.models import Model
from jaxlm.parallel import processes
from jaxlm.run.run_dir import RunDir
from jaxlm.setup.setup import Setup
from jaxlm.tasks.language_model import SamplesConfig
from jaxlm.tokenizer.tokenizer import Tokenizer

FILE = "samples.jsonl"
_PROMPT_TOKENS = 8


@dataclass(frozen=True)
class Sampler:
    """Continues the same prompts at each evaluation, with the same seed."""

    model: Model
    tokenizer: Tokenizer
    config: SamplesConfig
    prompts: tuple[tuple[int, ...], ...]
    seed: int
    prefix: bool
    """Prompts are read in both directions."""

    @classmethod
    def of(cls, setup: Setup) -> Sampler | None:
        """The sampler of a run; None for a model that does not write, or a config that asks for no sample."""
        if not getattr(setup.task, "generative", False) or setup.model.family.init_cache is None:
            return None
        config: SamplesConfig = setup.task.config.samples
        if config.prompts:
            prompts = [setup.tokenizer.encode_prompt(text) for text in config.prompts]
        else:
            prompts = _beginnings(setup, config.number)
        room = setup.model.config.max_positions - config.tokens
        prompts = [prompt[-room:] for prompt in prompts if prompt and room > 0]
        if not prompts:
            return None
        prefix = setup.config.task.kind == "prefix_lm"
        chosen = tuple(map(tuple, prompts))
        return cls(setup.model, setup.tokenizer, config, chosen, setup.config.seed, prefix)

    def write(self, params: Any, step: int) -> list[dict[str, Any]]:
        """Returns {"step", "prompt", "text"} of each prompt, `text` being the continuation alone."""
        written = generate(
            self.model,
            params,
            self.prompts,
            max_new_tokens=self.config.tokens,
            temperature=self.config.temperature,
            top_k=self.config.top_k,
            top_p=self.config.top_p,
            eos_id=self.tokenizer.eos_id,
            pad_id=self.tokenizer.pad_id or 0,
            seed=self.seed,
            prefix=self.prefix,
        )
        return [
            {"step": step, "prompt": self.tokenizer.decode(prompt), "text": self.tokenizer.continuation(prompt, new)}
            for prompt, new in zip(self.prompts, written, strict=True)
        ]


def save_samples(run: RunDir, samples: list[dict[str, Any]]) -> None:
    """Adds samples to the run's samples.jsonl; those of a step that ran before replace it."""
    if not processes.is_first():
        return
    path = run.path / FILE
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    earlier = [line for line in lines if json.loads(line)["step"] < samples[0]["step"]]
    new = [json.dumps(sample, ensure_ascii=False) for sample in samples]
    run.write_text(FILE, "".join(f"{line}\n" for line in [*earlier, *new]))


def _beginnings(setup: Setup, number: int) -> list[list[int]]:
    """The first tokens of the first held-out (else training) documents."""
    split = setup.splits.get("validation") or setup.splits["train"]
    found: list[list[int]] = []
    if not isinstance(split, CorpusSplit):
        return found
    corpus = split.plans[0].corpus
    for document in range(min(number, corpus.num_documents)):
        start, stop = int(corpus.offsets[document]), int(corpus.offsets[document + 1])
        found.append(corpus.read(start, min(stop, start + _PROMPT_TOKENS)).tolist())
    return found
