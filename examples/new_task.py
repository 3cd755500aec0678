"""A new task from outside the package: one tag for each word of a sentence. docs/design.md walks through it.

python scripts/finetune.py --plugin examples/new_task.py --config examples/new_task.yaml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import optax

from jaxlm.data.examples.example import Example, Examples
from jaxlm.fields import Field
from jaxlm.tasks import register
from jaxlm.tasks.base import RowTask
from jaxlm.tasks.records import Context, Metric, Outputs, TaskConfig


class ToyTaggingConfig(TaskConfig):
    kind: Literal["toy_tagging"] = "toy_tagging"
    tags: tuple[str, ...]


@register
@dataclass(frozen=True, eq=False)
class ToyTagging(RowTask):
    config: ToyTaggingConfig
    context: Context
    Config = ToyTaggingConfig
    head = "token_classification"
    fields = (Field("labels", "token"), Field("weights", "token", np.float32))
    metrics = (Metric("accuracy"), Metric("loss", higher_is_better=False))

    @property
    def num_outputs(self):
        return len(self.config.tags)

    @classmethod
    def text_columns(cls, config):
        return ("words",)

    @classmethod
    def create(cls, config, context, sources):
        return cls(config, context)

    def examples(self, table, *, labelled, key):
        table.require("words", *(("tags",) if labelled else ()), key=key)
        made, gold = [], []
        for i, row in enumerate(table.rows):
            words = row["words"].split()
            tags = [self.config.tags.index(tag) for tag in row["tags"].split()] if labelled else [0] * len(words)
            ids, word = self.context.tokenizer.encode_words(words, self.context.data.max_length)
            first = (word >= 0) & (np.diff(word, prepend=-1) != 0)  # a word's tag stands at its first token
            arrays = {"tokens": ids, "labels": np.where(first, np.asarray(tags)[word], 0), "weights": first}
            made.append(Example(arrays, i, host=first))
            gold.append(tags if labelled else None)
        return Examples(table, made, gold, {})

    def loss(self, outputs, batch):
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"])
        return (losses * batch["weights"]).sum(), batch["weights"].sum()

    def measure(self, outputs, batch):
        return Outputs(super().measure(outputs, batch).sums, tokens={"tags": outputs.argmax(-1)})

    def decode(self, example, outputs):
        return outputs["tags"][example.host].tolist()

    def prediction(self, row, kept):
        return {"tags": " ".join(self.config.tags[tag] for tag in kept)}

    def scores(self, sums, answers, dataset):
        right = [a == b for answer in answers for a, b in zip(answer.kept, answer.label, strict=False)]
        return {"accuracy": float(np.mean(right)), **super().scores(sums, answers, dataset)}

    def show(self, batch):
        return [self.context.tokenizer.decode(batch["tokens"][0])]
