"""Imports all of jaxlm, and makes a tiny run of each kind, which is evaluated and answers: for other interpreters.

    python -W error scripts/smoke.py

Needs no test extra. `.ci/run` calls it on the newest interpreter of the machine, which gets the newest JAX.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

import helpers.environment  # noqa: E402, F401  before JAX: eight fake devices, quick compilation
from helpers.choice_runs import write_choices  # noqa: E402
from helpers.embedding_runs import write_embedding  # noqa: E402
from helpers.finetuning_runs import read_jsonl, run, write_config, write_jsonl  # noqa: E402
from helpers.pretraining_runs import MODELS, write_pretraining  # noqa: E402
from helpers.tagging_runs import write_tagging  # noqa: E402
from helpers.writing_runs import write_pairs  # noqa: E402

import jaxlm  # noqa: E402

QUESTION = {
    "text": "the film was good", "question": "the film", "choices": ["good", "bad"], "context": "the film was",
    "en": "sun",
}  # fmt: skip
ANSWERS = {
    "classification": (),
    "tagging": (),
    "multiple_choice": (),
    "question_answering": (),
    "embedding": (),
    "text_to_text": (),
    "translation": ("generation.num_beams=2",),
    "summarization": (),
    "causal_lm": ("generation.max_new_tokens=5",),
    "prefix_lm": ("generation.max_new_tokens=5",),
}
"""The kinds that answer it, and the options to ask with."""
WITHOUT_EVALUATION = ("replaced_tokens",)
"""Their export leaves out what only training needs."""


def write_questions(folder: Path, **sections: Any) -> Path:
    """Questions whose answer is a word of the context."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "validation", "test"):
        rows = [
            {"id": str(i), "question": "which film", "context": f"a plot {i} of all",
             "answers": {"text": [str(i)], "answer_start": [7]}}
            for i in range(24)
        ]  # fmt: skip
        write_jsonl(folder / f"{name}.jsonl", rows)
    path = write_config(folder, **sections)
    path.write_text(path.read_text().replace("  text: text\n  label: label\n", "  kind: question_answering\n"))
    return path


LABELLED = {
    "tagging": write_tagging,
    "multiple_choice": write_choices,
    "question_answering": write_questions,
    "embedding": write_embedding,
    "text_to_text": partial(write_pairs, kind="text_to_text", family="gpt2"),
    "translation": partial(write_pairs, kind="translation", family="t5"),
    "summarization": partial(write_pairs, kind="summarization", family="t5"),
}
"""Makes the run of a kind."""


def main() -> None:
    for module in pkgutil.walk_packages(jaxlm.__path__, "jaxlm."):
        if module.name != "jaxlm.__main__":
            importlib.import_module(module.name)
    from jaxlm.tasks import TASKS

    known = {"classification", *LABELLED, *MODELS}
    assert known == set(TASKS), f"give scripts/smoke.py a run of {', '.join(set(TASKS) - known)}"
    for kind in TASKS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as temporary:
            smoke(kind, Path(temporary))
        print(f"smoke: {kind} took {time.monotonic() - started:.0f} s", flush=True)


def smoke(kind: str, folder: Path) -> None:
    """One run: trained on a mesh, evaluated, and asked where the kind gives answers."""
    mesh = ("mesh.preset=fsdp_tp", "mesh.fsdp=2", "mesh.tensor=2", "mesh.data=2")
    if kind == "classification":
        name, command, config = "tiny", "finetune", write_config(folder, train={"epochs": 1})
    elif kind in LABELLED:
        name, command, config = "tiny", "finetune", LABELLED[kind](folder, train={"epochs": 1})
    else:
        train = {"batch_size": 8, "steps": 4, "eval_every": 4}
        task = {"kind": kind, **({"generator_size": 0.5} if kind == "replaced_tokens" else {})}  # of two heads, too
        name, command, config = "tiny-lm", "pretrain", write_pretraining(folder, kind, train=train, task=task)
    assert run(command, "--config", config, *mesh) == 0
    made = folder / "runs" / name
    if kind not in WITHOUT_EVALUATION:
        assert run("evaluate", "--run", made, "--split", "validation") == 0
    if kind in ANSWERS:
        asked, answered = write_jsonl(folder / "in.jsonl", [QUESTION]), folder / "out.jsonl"
        assert run("predict", "--run", made, "--input", asked, "--output", answered, *ANSWERS[kind]) == 0
        [answer] = read_jsonl(answered)
        assert answer["prediction"], answer


if __name__ == "__main__":
    main()
