"""What a run exports: the model, its tokenizer and its settings, as Transformers reads them."""

from __future__ import annotations

from typing import Any

from jaxlm.hf import generation_config
from jaxlm.hf.checkpoint import export_model
from jaxlm.parallel import processes
from jaxlm.run.run_dir import RunDir
from jaxlm.setup.generation import generation_json
from jaxlm.setup.model import model_side
from jaxlm.setup.setup import Setup
from jaxlm.tasks.base import Task


def export_trained(directory: RunDir, setup: Setup, task: Task, params: Any) -> None:
    """Writes the folder `model` of a run; every process must call it.

    Args:
      task: after training, with what it tuned.
      params: tree of the model's parameters.
    """
    model = setup.model
    export_model(directory.model, model, params, task.hf_config())
    if not processes.is_first():
        return
    task.hf_tokenizer(setup.tokenizer).save(directory.model, model_side(model, setup.config))
    files = task.hf_files(model.width)
    if task.generation is not None and model.family.init_cache is not None:
        known = {**model.family.to_hf(model.config), **task.hf_config()}
        files = {**files, generation_config.FILE: generation_json(task.generation, known)}
    for name, content in files.items():
        directory.write_text(f"{directory.model.name}/{name}", content)
