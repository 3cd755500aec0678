"""Compiles train, eval and decode steps with the real TPU compiler, and says what is in them: a line of JSON for each.

Run by tests/helpers/tpu_matrix.py in processes of their own: libtpu takes a lock, and the tests' eight CPU devices and
strict flags stay out of it. The argument is JSON: a list of cases {topology, family, task, preset, step}.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies

from jaxlm.cost.hlo import collectives, kernels
from jaxlm.data.config import DataConfig
from jaxlm.fields import GROUPS, Field
from jaxlm.inference.evaluator import make_eval_step
from jaxlm.inference.rows import Prompts
from jaxlm.inference.slot_steps import Fixed, Plan, empty_slots, fill, run
from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import override
from jaxlm.nn.layers import ComputeConfig
from jaxlm.objectives import without_frozen
from jaxlm.objectives.classification import multiclass_loss
from jaxlm.objectives.language_model import (
    language_model_loss,
    measure_language_model,
    measure_replaced_tokens,
    replaced_tokens_loss,
)
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules, batch_shardings
from jaxlm.tasks.base import RowTask
from jaxlm.tasks.multiple_choice import MultipleChoice, MultipleChoiceConfig
from jaxlm.tasks.question_answering import QuestionAnswering, QuestionAnsweringConfig
from jaxlm.tasks.records import Context, Generation, Outputs
from jaxlm.tasks.tagging import Tagging
from jaxlm.tasks.tagging_config import TaggingConfig
from jaxlm.training.gradients import accumulated_gradients
from jaxlm.training.state import abstract_state, bytes_on_device, state_shardings
from jaxlm.training.step import make_train_step

SLOTS, ROOM = 8, 16
QUICK = {"exec_time_optimization_effort": -1.0}
"""Compiler options: a fifth of the time, for a slower program."""
DROPS_PROBABILITIES = "distilbert"
"""Trains with dropout of attention's probabilities, for which there is a kernel of its own."""
SIZES = {
    "vocab_size": 512, "num_layers": 2, "embed_dim": 128, "num_heads": 8, "mlp_dim": 256, "max_positions": 2048,
    "num_kv_heads": 8, "head_dim": 16, "table_dim": 128, "hidden_dim": 128, "generator_size": 1.0, "pad_id": 0,
    "dropout": 0.0, "attention_dropout": 0.0, "window": 128,
}  # fmt: skip
"""Of whichever fields a family has. Every preset divides them by eight."""
POD = {"vocab_size": 2048, "embed_dim": 1024, "num_heads": 16, "num_kv_heads": 16, "head_dim": 64, "mlp_dim": 4096}
"""Instead, where there are 64 devices and more."""
HEADS = {
    "classification": "classification", "causal_lm": "causal_lm", "prefix_lm": "causal_lm", "masked_lm": "masked_lm",
    "span_corruption": "seq2seq_lm", "translation": "seq2seq_lm",
    "replaced_tokens": "replaced_tokens", "tagging": "token_classification",
    "question_answering": "question_answering", "multiple_choice": "multiple_choice",
}  # fmt: skip
CONTEXT = Context(DataConfig(), None)  # no text is read
READING: dict[str, RowTask] = {
    "tagging": Tagging(TaggingConfig(), CONTEXT, "bio", ("O", "B-X", "I-X")),
    "question_answering": QuestionAnswering.create(QuestionAnsweringConfig(), CONTEXT, None),
    "multiple_choice": MultipleChoice.create(MultipleChoiceConfig(choices=("a", "b")), CONTEXT, None),
}


def build(family: str, task: str, rules: Rules) -> Model:
    record = FAMILIES[family]
    config = next(iter(record.presets.values()))
    known = {field.name for field in dataclasses.fields(config)}
    sizes = SIZES | (POD if rules.mesh is not None and rules.mesh.size >= 64 else {})
    if (family, task) == ("distilbert", "masked_lm"):  # which takes three times as long
        sizes["dropout"] = 0.1
    if family == DROPS_PROBABILITIES:
        sizes["attention_dropout"] = 0.1
    fields = {name: value for name, value in sizes.items() if name in known}
    if family in ("llama", "qwen3"):
        del fields["window"]
    if family == "qwen2":  # layers that differ in the window
        fields["windowed_layers"] = (False, True)
    compute = ComputeConfig(jnp.dtype(jnp.bfloat16), remat="full", rules=rules)
    outputs = READING[task].num_outputs if task in READING else 3
    return Model(record, override(config, fields), HEADS[task], outputs, compute)


def objective(task: str) -> tuple[Any, Any]:
    """The task's loss, and what its evaluation measures."""
    if task == "classification":
        return multiclass_loss(), lambda outputs, batch: Outputs(slots={"logits": outputs})
    if task in READING:
        return READING[task].loss, READING[task].measure
    if task == "replaced_tokens":
        return replaced_tokens_loss(discriminator_weight=50.0, mask_rate=0.15), _sums(measure_replaced_tokens)
    return language_model_loss(), _sums(measure_language_model)


def _sums(measure: Any) -> Any:
    return lambda outputs, batch: Outputs(measure(outputs, batch))


def fields_of(task: str) -> tuple[Field, ...]:
    """The arrays with a value for each token, of those in `batch` that streams do not have."""
    if task in READING:
        return READING[task].fields
    names = {"prefix_lm": ("labels", "weights", "prefix"), "replaced_tokens": ("original_tokens",)}
    names |= dict.fromkeys(("classification", "masked_lm"), ())
    return tuple(Field(name, "token") for name in (*names.get(task, ("labels", "weights")), "token_types"))


def batch(model: Model, task: str, rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What the loader makes of this task's rows, without numbers in it."""
    inputs = {name: (length,) for name in model.family.inputs if name not in ("slot_positions", "prefix")}
    if task in READING:
        shapes = {**inputs, GROUPS: (SLOTS,), "weights": (SLOTS,)}
        shapes |= {field.name: (length if field.per == "token" else SLOTS,) for field in READING[task].fields}
        kinds = {"weights": jnp.float32}
        return {n: jax.ShapeDtypeStruct((rows, *s), kinds.get(n, jnp.int32)) for n, s in shapes.items()}
    slots = (length // 8,) if task in ("masked_lm", "replaced_tokens") else (SLOTS,)
    if task in ("classification", "masked_lm", "replaced_tokens"):
        inputs |= {"slot_positions": slots, "labels": slots}
    else:
        inputs |= {"labels": (length,)}
    if task == "prefix_lm":
        inputs["prefix"] = (length,)
    if task == "replaced_tokens":
        inputs["original_tokens"] = (length,)
    arrays = {name: jax.ShapeDtypeStruct((rows, *shape), jnp.int32) for name, shape in inputs.items()}
    return arrays | {"weights": jax.ShapeDtypeStruct(arrays["labels"].shape, jnp.float32)}


def placed(arrays: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, sh: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sh), arrays, shardings)


def lower(model: Model, task: str, step: str) -> Any:
    """The train, eval or decode step, as train.py, evaluate.py and generate.py compile it."""
    rules, key = model.compute.rules, jax.random.key(0)
    rows = 2 * rules.num_batch_shards
    length = 128 * max(5, rules.size("context"))
    params = model.shapes
    if step == "decode":
        reads = model.family.is_encoder_decoder
        width = 16 if reads else length  # the decoder's prompt
        source = jax.ShapeDtypeStruct((rows, length), jnp.int32)
        tokens, numbers = jax.ShapeDtypeStruct((rows, width), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.int32)
        shapes = [tokens, *[numbers] * 6, source]
        *arrays, source = placed(shapes, [rules.sharding(("batch", "length")[: len(s.shape)], s.shape) for s in shapes])
        settings = Generation(eos_ids=(2,), prefix=task == "prefix_lm")
        sizes = {"width": width, "room": ROOM, "columns": width + ROOM, "most_columns": width + ROOM}
        plan = Plan(model, settings, slots=rows, group=rows, source_width=length * reads, **sizes)

        def write(fixed: Fixed, prompts: Prompts, slots: jax.Array, source: Any) -> Any:
            carry = fill(fixed, empty_slots(fixed, plan=plan), prompts, slots, source, plan=plan)
            return run(fixed, carry, np.int32(rows), np.int32(ROOM), plan=plan)[1]

        read = (source, source) if reads else None
        return jax.jit(write).lower(Fixed(params, key), Prompts(*arrays[:-1]), arrays[-1], read)
    loss, measure = objective(task)
    arrays = batch(model, task, rows, length)
    if step == "eval":
        eval_step = jax.jit(make_eval_step(lambda params, frozen, *rest: model.apply(params, *rest), measure))
        return eval_step.lower(params, {}, placed(arrays, batch_shardings(arrays, rules, fields_of(task))))
    optimizer, schedule = optax.adamw(1e-4), optax.constant_schedule(1e-4)
    micro = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in arrays.items()}
    gradients = accumulated_gradients(without_frozen(model.apply), loss, sharded=True)
    train_step = make_train_step(gradients, optimizer, schedule)
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings(params, optimizer, rules), None))
    state = abstract_state(params, optimizer, key, rules)
    return jitted.lower(state, placed(micro, batch_shardings(micro, rules, fields_of(task), leading=1)))


def report(case: dict[str, str], devices: Any) -> dict[str, Any]:
    preset, task = case["preset"], case["task"]
    rules = Rules(make_mesh(preset, devices=devices))
    start = time.perf_counter()
    model = build(case["family"], task, rules)
    compiled = lower(model, task, case["step"]).compile(compiler_options=QUICK)
    text, memory = compiled.as_text(), compiled.memory_analysis()
    return {
        "collectives": [[c.kind, c.op_name, [shape for _, shape in c.shapes]] for c in collectives(text)],
        "kernels": sorted({kernel.name for kernel in kernels(text)}),
        "squares": sorted(set(re.findall(r"\w+\[(?:\d+,)*(\d+),\1\]", text)), key=int),
        "parameters": bytes_on_device(abstract_state(model.shapes, optax.sgd(1.0), jax.random.key(0), rules).params),
        "bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    for case in json.loads(sys.argv[1]):
        slices = {"num_slices": 2} if case["preset"] == "hybrid" else {}
        devices = topologies.get_topology_desc(platform="tpu", topology_name=case["topology"], **slices).devices
        try:
            found = report(case, devices)
        except Exception as error:  # the others may compile
            found = {"error": f"{type(error).__name__}: {error}"[:2000]}
        print(json.dumps(case | found), flush=True)


if __name__ == "__main__":
    main()
