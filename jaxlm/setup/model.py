"""The model of a run, on its mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxlm.config.model import ModelConfig
from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.models import Family, Model, get_family
from jaxlm.models.base import override
from jaxlm.nn.layers import ComputeConfig
from jaxlm.nn.products import half_products_work
from jaxlm.nn.remat import ATTENTION, Remat
from jaxlm.parallel.mesh import choose_mesh
from jaxlm.parallel.sharding import Rules, param_shardings
from jaxlm.tasks.base import Task
from jaxlm.tokenizer.saving import ModelSide
from jaxlm.tokenizer.tokenizer import Tokenizer


def build_model(
    config: Config,
    task: Task,
    tokenizer: Tokenizer,
    checkpoint: HFCheckpoint | None,
    devices: Sequence[Any] | None = None,
) -> Model:
    """Returns the model on its mesh; UserError where config, tokenizer and checkpoint do not fit together."""
    family, sizes, where = sizes_of(config, checkpoint, tokenizer)
    sizes = override(sizes, task.model_overrides(config.task))
    if task.num_outputs and family.pool == "last" and (pad_id := tokenizer.padding_id(sizes.pad_id)) is not None:
        # Transformers' classifiers by the last token find it by the tokenizer's padding behind it.
        sizes = replace(sizes, pad_id=pad_id)
    if tokenizer.vocab_size > sizes.vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} ids, the model's vocab_size is {sizes.vocab_size}; "
            "they do not belong together"
        )
    key, longest = task.longest_row(config.data)
    if longest > sizes.max_positions:
        raise UserError(
            f"{key}={longest}: the model has {sizes.max_positions} positions; set it to at most {sizes.max_positions}"
        )
    return on_mesh(
        Model(family, sizes, task.head_of(family.heads), task.num_outputs, make_compute(config.model, Rules())),
        config,
        devices,
    )


def sizes_of(config: Config, checkpoint: HFCheckpoint | None, tokenizer: Tokenizer | None) -> tuple[Family, Any, str]:
    """Returns a model's family and sizes, and where they are from.

    Args:
      tokenizer: absent: sizes that follow from it are the family's.
    """
    model = config.model
    if checkpoint is not None:
        family, sizes, where = checkpoint.family, checkpoint.model_config, f"{checkpoint.directory}/config.json"
    else:
        family, where = get_family(model.family or "", "model.family"), "model.family"
        if model.preset is not None and model.preset not in family.presets:
            presets = ", ".join(family.presets)
            raise UserError(f"model.preset: {family.name} has no preset {model.preset!r}; it has {presets}")
        sizes = family.presets[model.preset] if model.preset else family.config()
        if tokenizer is not None:
            sizes = replace(sizes, **_from_tokenizer(sizes, tokenizer))
        sizes = override(sizes, model.config)
    rates = {name: getattr(model, name) for name in ("dropout", "attention_dropout", "classifier_dropout")}
    return family, override(sizes, {name: rate for name, rate in rates.items() if rate is not None}), where


def on_mesh(model: Model, config: Config, devices: Sequence[Any] | None = None) -> Model:
    """Returns a model on the mesh that the config asks for; UserError where its sizes do not divide over that."""
    shapes = model.shapes  # a head that the family lacks shows now
    _check_kept(model, config.model.remat)

    def divides(mesh: Mesh) -> bool:
        try:
            param_shardings(model.axes, shapes, Rules(mesh))
        except UserError:
            return False
        return True

    mesh, why = choose_mesh(config.mesh, model.num_parameters, divides, devices)
    placed = replace(model, compute=make_compute(config.model, Rules(mesh, description=why)))
    placed.shapes  # noqa: B018  sizes that do not divide show now
    return placed


def _check_kept(model: Model, remat: Remat) -> None:
    """Raises UserError where `model.remat` names what no layer of the model computes."""
    if isinstance(remat, str):
        return
    known = (ATTENTION, *dict.fromkeys(path.split("/")[-1] for path in model.kernels if "/layers/" in path))
    if unknown := [name for name in remat if name not in known]:
        raise UserError(
            f"model.remat: {unknown[0]!r} is no activation of {model.family.name}; expected none, full, dots, or "
            f"a list of some of {', '.join(known)}"
        )


def _from_tokenizer(sizes: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """Fields of a family's config that follow the tokenizer."""
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    if ids["pad_id"] is None and sizes.pad_id is not None:
        ids["pad_id"] = 0  # a family that must have one, and never reads what stands there
    ids |= {"decoder_start_id": ids["pad_id"], "forced_eos_id": ids["eos_id"]}
    known = {name: value for name, value in ids.items() if hasattr(sizes, name)}
    return {"vocab_size": tokenizer.vocab_size, **known}


def decoder_start_id(config: Config, checkpoint: HFCheckpoint | None) -> int | None:
    """The token that the model's decoder reads first, as config.json or `model.config` says; None: padding's."""
    if checkpoint is not None:
        return getattr(checkpoint.model_config, "decoder_start_id", None)
    return config.model.config.get("decoder_start_id")


def eos_ids(checkpoint: HFCheckpoint | None) -> tuple[int, ...]:
    """The tokens that end a text, as generation_config.json or config.json says."""
    ids = None if checkpoint is None else getattr(checkpoint.model_config, "eos_id", None)
    return () if ids is None else ids if isinstance(ids, tuple) else (ids,)


def model_side(model: Model, config: Config) -> ModelSide:
    """What an export's tokenizer has to know of the model."""
    side = "left" if model.head == "causal_lm" else "right"  # texts are continued at their end
    return ModelSide(model.config.pad_id, model.config.max_positions, config.data.max_length, side)


def make_compute(model: ModelConfig, rules: Rules) -> ComputeConfig:
    """How to compute, from the config's knobs and the platform; training steps as `for_training` says."""
    # Unrolled, XLA's CPU compiler saves the copies in and out of the loop; elsewhere compile time weighs more.
    unroll = model.unroll if model.unroll != "auto" else 1_000_000 if rules.platform == "cpu" else 1
    flatten = rules.platform == "cpu" and (rules.mesh is None or rules.mesh.size == 1)
    dtype = jnp.dtype(model.dtype)
    if flatten and model.matmul == "bfloat16" and not half_products_work():
        raise UserError("model.matmul=bfloat16: this CPU has no instructions for it; expected float32 or auto")
    low = dtype == jnp.bfloat16 and model.matmul == "auto" and half_products_work()
    half = flatten and (low or model.matmul == "bfloat16")
    compute = ComputeConfig(dtype, model.attention, model.remat, unroll, rules, flatten, half, model.layer_drop)
    if model.lora is None:
        return compute
    return replace(compute, adapter_scale=model.lora.scale, adapter_dropout=model.lora.dropout)


def for_training(model: Model, setting: str) -> Model:
    """Returns a model as training steps compute it.

    Args:
      setting: `model.matmul`.
    """
    half = setting == "auto" and model.compute.flatten_products and half_products_work()
    return replace(model, compute=replace(model.compute, half_products=True)) if half else model
