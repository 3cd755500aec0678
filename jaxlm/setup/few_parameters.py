"""Which parameters a run trains: all, those that `model.freeze` leaves, or few of them and adapters beside the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxlm.config.model import ModelConfig
from jaxlm.errors import UserError
from jaxlm.hf.adapter_export import AdapterFiles
from jaxlm.hf.checkpoint import HFCheckpoint, plan_checkpoint
from jaxlm.models import Model
from jaxlm.models.adapters import DORA, IA3, IA3_INPUT, LORA, AdaptedSplit, Adapters, find_targets
from jaxlm.models.base import flatten
from jaxlm.models.freezing import Frozen, freeze, kernel_dims
from jaxlm.models.mixout import MixoutSplit


def make_adapters(config: ModelConfig, model: Model) -> Adapters | None:
    """Returns the adapters that a config asks for; UserError for a kernel that the model lacks."""
    if (lora := config.lora) is not None:
        suffixes = (*LORA, DORA) if lora.dora else LORA
        found = find_targets(model, lora.targets, "model.lora.targets")
        return Adapters(model, dict.fromkeys(found, suffixes), lora.rank)
    if (ia3 := config.ia3) is not None:
        found = find_targets(model, ia3.targets, "model.ia3.targets")
        of_inputs = find_targets(model, ia3.feedforward, "model.ia3.feedforward")
        other = sorted(set(of_inputs) - set(found))
        if other and ia3.feedforward != type(ia3).model_fields["feedforward"].default:
            raise UserError(
                f"model.ia3.feedforward: expected some of model.ia3.targets, found {', '.join(other)}, which are none "
                "of them"
            )
        return Adapters(model, {path: (IA3_INPUT,) if path in of_inputs else (IA3,) for path in found})
    return None


def make_split(config: ModelConfig, model: Model, adapters: Adapters | None, checkpoint: HFCheckpoint | None) -> Frozen:
    """Returns what is trained, where pretrained weights are mixed in, and in which dtype the rest is held.

    Raises:
      UserError: as `_split`; another dtype for what is frozen, and nothing is.
    """
    split = _split(config, model, adapters, checkpoint)
    if config.frozen_dtype == "float32":
        return split
    if not split.whole:
        raise UserError(
            f"model.frozen_dtype={config.frozen_dtype}: no parameter is frozen whole; set model.lora, ia3, bitfit or "
            "freeze, or leave it out"
        )
    if config.frozen_dtype == "bfloat16":
        return replace(split, dtype=jnp.bfloat16)
    return replace(split, dtype=jnp.int8, int8_kernels=kernel_dims(model))


def _split(config: ModelConfig, model: Model, adapters: Adapters | None, checkpoint: HFCheckpoint | None) -> Frozen:
    """Returns what is trained, and where pretrained weights are mixed in.

    With adapters, or of biases, what the checkpoint lacks is trained, too, and so is the head, unless it is the output
    layer of a language model.

    Raises:
      UserError: parameters that no checkpoint holds would stay as they were drawn; or there is nothing to train.
    """
    if adapters is None and not config.bitfit:
        frozen = freeze(model, config.freeze)
        if not config.mixout:
            return frozen
        mixed = frozenset(name for name in model.kernels if name.startswith("trunk/"))
        if mixed <= frozen.whole:
            raise UserError(
                "model.mixout: model.freeze holds all dense layers of the trunk, and there is nothing to mix into; "
                "leave one of them out"
            )
        return MixoutSplit(frozen.whole, frozen.layers, kernels=mixed, rate=config.mixout)
    way = "model.bitfit" if adapters is None else "model.lora" if adapters.rank else "model.ia3"
    if checkpoint is None:
        raise UserError(
            f"{way}: expected model.init: a checkpoint whose parameters are kept as they are; those of a model that "
            "starts from random parameters have to be trained"
        )
    axes = flatten(model.axes)
    head = {name for name in axes if name.startswith("head/")}
    trained = set() if any("vocab" in axes[name] for name in head) else head
    trained |= set(plan_checkpoint(checkpoint, model).missing)
    if adapters is None:
        biases = {name for name in axes if name.endswith("_bias") and "buckets" not in axes[name]}
        if not any(name.startswith("trunk/") for name in biases):
            raise UserError(f"model.bitfit: the {model.family.name} family has no biases; use model.lora instead")
        trained |= biases
    return AdaptedSplit(frozenset(axes.keys() - trained), adapters=adapters)


def adapter_files(
    config: ModelConfig, adapters: Adapters | None, split: Frozen, checkpoint: HFCheckpoint | None
) -> AdapterFiles | None:
    """What PEFT's folder of a run's adapters holds; None for a run without."""
    if adapters is None or checkpoint is None:
        return None
    settings: dict[str, Any] = {}
    if (lora := config.lora) is not None:
        settings = {
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "use_rslora": lora.rslora,
            "use_dora": lora.dora,
        }
    local = Path(config.init or "").expanduser().is_dir()
    if not local and config.commit is not None:
        settings["revision"] = config.commit
    base = str(checkpoint.directory.absolute()) if local else str(config.init)
    trained = flatten(adapters.model.shapes).keys() - split.whole
    return AdapterFiles(adapters, base, settings, tuple(sorted(trained)))
