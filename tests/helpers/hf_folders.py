"""HF-format directories whose weights follow a formula, and reading them: what golden and round-trip tests share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from helpers.paths import GOLDEN
from helpers.tiny_models import formula_tensor
from safetensors.numpy import load_file, save_file

from jaxlm.hf.checkpoint import HFCheckpoint, LoadedParams, load_params
from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import flatten
from jaxlm.models.weight_map import rules_for


def read_golden(name: str) -> dict[str, Any]:
    """A file that scripts/make_golden.py wrote."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def write_checkpoint(
    directory: Path, config: dict[str, Any], head: str, extra: Sequence[tuple[str, Sequence[int]]] = ()
) -> None:
    """Writes config.json and model.safetensors; `extra` are keys and shapes that the head does not need."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    record = FAMILIES[config["model_type"]]
    model = Model(record, record.from_hf(config), head, 2)
    shapes = {name: struct.shape for name, struct in flatten(model.shapes).items()}
    tensors = {key: formula_tensor(key, shape) for key, shape in extra}
    for rule in rules_for(model.weight_map, shapes):
        shape = shapes[rule.param]
        tensors |= {key: formula_tensor(key, rule.hf_shape(shape)) for key in rule.keys(shape)}
    save_file(tensors, directory / "model.safetensors")


def load_checkpoint(directory: Path, head: str, num_outputs: int = 0) -> tuple[Model, LoadedParams]:
    checkpoint = HFCheckpoint(directory)
    model = Model(checkpoint.family, checkpoint.model_config, head, num_outputs)
    return model, load_params(checkpoint, model, jax.random.key(0))


def load_own_head(directory: Path, head: str, num_outputs: int) -> tuple[Model, LoadedParams]:
    """Loads a checkpoint as what it is: its config.json names this head, and every tensor is read."""
    assert HFCheckpoint(directory).head == head
    model, imported = load_checkpoint(directory, head, num_outputs)
    assert imported.initialized == imported.ignored == ()
    return model, imported


def assert_same_tensors(before: Path, after: Path, without: Sequence[str] = ()) -> None:
    """The directories' files hold the same keys, but for `without`, with bit-equal values."""
    old, new = (load_file(directory / "model.safetensors") for directory in (before, after))
    assert old.keys() - set(without) == new.keys()
    for key, value in new.items():
        np.testing.assert_array_equal(value, old[key], err_msg=key, strict=True)
