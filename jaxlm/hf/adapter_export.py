"""Writes a run's adapters as PEFT does: adapter_config.json and adapter_model.safetensors, which `peft` loads onto the
model that the run started from.

Names and shapes follow from the rules of the kernels that the adapters stand beside (`models.weight_map`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from einops import rearrange

from jaxlm.hf.shards import save_tensors
from jaxlm.hf.transfer import entries, on_host
from jaxlm.models.adapters import DORA, IA3_INPUT, Adapters
from jaxlm.models.base import flatten
from jaxlm.models.weight_map import Rule, rules_for

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the model that it wraps."""
TASK_TYPES = {
    "classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "embedding": "FEATURE_EXTRACTION",
}
"""Kind of head -> PEFT's `task_type`; others have none."""
HEADS = ("classifier", "score", "qa_outputs")
"""Modules that PEFT saves whole, as the heads of its task types, whatever is inside them."""


@dataclass(frozen=True)
class AdapterFiles:
    """What a folder of PEFT's holds.

    Attributes:
      base: the model that the run started from, as `peft` finds it.
      settings: further keys of adapter_config.json: those of LoRA, say.
      trained: names of the model's own parameters that were trained whole.
    """

    adapters: Adapters
    base: str
    settings: Mapping[str, Any]
    trained: tuple[str, ...]

    def write(self, directory: Path, params: Any) -> None:
        """Every process has to call it; the first writes.

        Args:
          directory: made if absent.
          params: tree that has the adapters and the parameters in `trained`.
        """
        tensors = {f"{PREFIX}{key}": value for key, value in self._tensors(flatten(params))}
        if jax.process_index():
            return
        directory.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, directory / WEIGHTS)
        text = json.dumps(self._config(), indent=2, ensure_ascii=False) + "\n"
        (directory / CONFIG).write_text(text, encoding="utf-8")

    @property
    def _rules(self) -> dict[str, Rule]:
        model = self.adapters.model
        return {rule.param: rule for rule in rules_for(model.weight_map, flatten(model.shapes))}

    def _tensors(self, flat: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        rules, shapes = self._rules, flatten(self.adapters.model.shapes)
        for path, leaf in self.adapters.leaves.items():
            rule = rules[leaf.kernel]
            for key, value in zip(rule.keys(shapes[leaf.kernel].shape), _layers(rule, flat[path]), strict=True):
                name, tensor = _peft_tensor(rule, leaf.suffix, self.adapters.model.kernels[leaf.kernel], value)
                yield f"{key.removesuffix('.weight')}.{name}", tensor
        for path in self.trained:
            if (rule := rules.get(path)) is None:
                continue  # HF has no name for it
            for key, value in zip(rule.keys(shapes[path].shape), _layers(rule, flat[path]), strict=True):
                yield key, np.ascontiguousarray(rule.from_param(value))

    def _config(self) -> dict[str, Any]:
        adapters, rules = self.adapters, self._rules
        shapes = flatten(adapters.model.shapes)
        modules = {path: rule.key.removesuffix(".weight") for path, rule in rules.items() if path in shapes}

        def names(kernels: Any) -> list[str]:
            found: list[str] = []
            for kernel in kernels:
                own, short = modules[kernel], modules[kernel].split("{i}.")[-1]
                # PEFT takes every module whose name ends so.
                others = [other for path, other in modules.items() if path not in adapters.targets and other != own]
                if any(f".{other}".endswith(f".{short}") for other in others):
                    rule = rules[kernel]
                    found += [key.removesuffix(".weight") for key in rule.keys(shapes[kernel].shape)]
                else:
                    found.append(short)
            return list(dict.fromkeys(found))

        trained = [rules[path].key.rpartition(".")[0] for path in self.trained if path in rules]
        saved = dict.fromkeys(name.split(".")[0] if name.split(".")[0] in HEADS else name for name in trained)
        of_inputs = [kernel for kernel, suffixes in adapters.targets.items() if IA3_INPUT in suffixes]
        kind = "LORA" if adapters.rank else "IA3"
        transposed = [_inputs_first(rules[kernel], adapters.model.kernels[kernel]) for kernel in adapters.targets]
        return {
            "peft_type": kind,
            "task_type": TASK_TYPES.get(adapters.model.head),
            "base_model_name_or_path": self.base,
            "inference_mode": True,
            "target_modules": names(adapters.targets),
            "modules_to_save": list(saved) or None,
            "fan_in_fan_out": any(transposed),
            **({"bias": "none"} if kind == "LORA" else {"feedforward_modules": names(of_inputs)}),
            **self.settings,
        }


def _layers(rule: Rule, value: Any) -> Iterator[np.ndarray]:
    return iter(entries(value)) if rule.stacked else iter([on_host(value)])


def _sides(rule: Rule, num_inputs: int) -> tuple[list[str], list[str], str, str]:
    """The names of a kernel's input and output dimensions, in our order, and how HF lays each out in one dimension."""
    names, groups = rule.dimensions
    inputs, outputs = names[:num_inputs], names[num_inputs:]
    of_inputs = next(group for group in groups if set(group) == set(inputs))
    of_outputs = next(group for group in groups if set(group) == set(outputs))
    return inputs, outputs, f"({' '.join(of_inputs)})", f"({' '.join(of_outputs)})"


def _inputs_first(rule: Rule, num_inputs: int) -> bool:
    """Whether HF keeps the kernel as [inputs, outputs]."""
    names, groups = rule.dimensions
    return set(groups[0]) == set(names[:num_inputs])


def _peft_tensor(rule: Rule, suffix: str, num_inputs: int, value: np.ndarray) -> tuple[str, np.ndarray]:
    """One layer's array as PEFT has it, and what its name ends in."""
    inputs, outputs, of_inputs, of_outputs = _sides(rule, num_inputs)
    ours_in, ours_out = " ".join(inputs), " ".join(outputs)
    name, pattern = {
        "lora_a": ("lora_A.weight", f"{ours_in} rank -> rank {of_inputs}"),
        "lora_b": ("lora_B.weight", f"rank {ours_out} -> {of_outputs} rank"),
        DORA: ("lora_magnitude_vector", f"{ours_out} -> {of_outputs}"),
        IA3_INPUT: ("ia3_l", f"{ours_in} -> 1 {of_inputs}"),
        "ia3_scale": ("ia3_l", f"{ours_out} -> {of_outputs} 1"),
    }[suffix]
    return name, np.ascontiguousarray(rearrange(value, pattern))
