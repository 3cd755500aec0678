"""Tagging: a tag to each word; named entities, parts of speech, chunks."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.data.augmentation.editor import Editor
from jaxlm.data.dataset import Dataset
from jaxlm.data.examples.bad_rows import BadRows
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.fields import Batch, Field
from jaxlm.metrics.entities import OUTSIDE, Entity, entities_of, entity_scores, split_tag
from jaxlm.objectives.skewed import NO_SKEW, Skew, skewed_loss
from jaxlm.report.sections import ReportSection
from jaxlm.tasks.base import RowTask
from jaxlm.tasks.first_row import show_first_row
from jaxlm.tasks.labelled_edits import edit_entities, edit_tagged
from jaxlm.tasks.labels import hf_label_names
from jaxlm.tasks.records import Answer, Context, Metric, Outputs, Request
from jaxlm.tasks.skew import accuracy_remarks, described_weights, make_skew
from jaxlm.tasks.tag_schemes import (
    Scheme,
    bare_entities,
    check_mark,
    check_tag,
    convert_tags,
    detect_scheme,
    has_mark,
    tag_between,
    transition_scores,
    viterbi,
)
from jaxlm.tasks.tag_settings import sentences_of, settle_tags
from jaxlm.tasks.tagged_rows import (
    Words,
    check_sentences,
    entities_of_cell,
    named_entity,
    tags_of_cell,
    tags_of_entities,
    words_of_tokens,
    written_entities,
)
from jaxlm.tasks.tagging_baseline import most_frequent_tags
from jaxlm.tasks.tagging_config import TaggingConfig
from jaxlm.tasks.tagging_report import TaggedSentence, tagging_sections
from jaxlm.tasks.text_words import words_of_text
from jaxlm.tasks.word_windows import tagged_example, tokens_of_words, word_windows

log = logging.getLogger("jaxlm")


class TaggedRow(NamedTuple):
    """What is kept of a row: the tag of each word, int16 [W], and its characters, int32 [W, 2]."""

    tags: np.ndarray
    spans: np.ndarray


@dataclass(frozen=True, eq=False)
class Tagging(RowTask):
    """Gives each word a tag. The first token of a word carries its label; long rows are read in windows.

    Attributes:
      config: the section `task`.
      context: settings and tokenizer.
      scheme: that of `label_names`.
      label_names: tags in the order of the head's outputs.
      skew: how the training loss treats tags of unequal frequency.
    """

    config: TaggingConfig
    context: Context
    scheme: Scheme
    label_names: tuple[str, ...]
    skew: Skew = NO_SKEW

    Config = TaggingConfig
    head = "token_classification"
    labels_inside = True

    @classmethod
    def text_columns(cls, config: TaggingConfig) -> tuple[str, ...]:
        return (config.tokens if config.text is None else config.text,)

    @classmethod
    def input_columns(cls, config: TaggingConfig, columns: Sequence[str]) -> tuple[str, ...]:
        """Rows of tokens or of text, whichever they hold; of both, what the model has learned from."""
        names = (config.tokens, "text") if config.text is None else (config.text, config.tokens)
        known = [name for name in names if name in columns]
        return (known[0],) if known else cls.text_columns(config)

    @classmethod
    def open(cls, config: TaggingConfig, request: Request) -> TableSources:
        for key in ("unicode", "control_characters", "whitespace"):
            if getattr(request.data.clean, key) not in ("none", False):
                raise UserError(
                    f"data.clean.{key}: tags stand at words and characters, which it would move; clean the file itself"
                )
        return super().open(config, request)

    @classmethod
    def edit_row(cls, config: TaggingConfig, row: dict[str, Any], editor: Editor) -> dict[str, Any] | None:
        """Edits words outside of entities; of bare tags, which every word has, none."""
        try:
            if config.text is not None:
                given = [named_entity(entity) for entity in row[config.entities]]
                text, entities = edit_entities(row[config.text], given, editor)
                return {**row, config.text: text, config.entities: entities}
            words = words_of_tokens(row[config.tokens])
            given = [words.text[start:end] for start, end in words.spans]
            tokens, tags = edit_tagged(given, tags_of_cell(row[config.tags], words, config.labels), editor)
            return {**row, config.tokens: tokens, config.tags: tags}
        except (UserError, KeyError, TypeError, ValueError):
            return None  # `examples` says what is wrong with the row

    @classmethod
    def create(cls, config: TaggingConfig, context: Context, sources: TableSources | None) -> Tagging:
        """Raises UserError for tags of no scheme or of fewer than two kinds, and a missing column."""
        train = None if sources is None else sources.tables.get("train")
        known = None if context.hf_config is None else hf_label_names(context.hf_config, placeholders=True)
        column = config.tags if config.text is None else config.entities
        if train is not None:
            for needed in (*cls.text_columns(config), column):
                train.require(needed, key=config.key_of(needed))
            if config.text is None:
                check_sentences([row[config.tokens] for row in train.rows], train.name)
        settled = None if sources is None else sources.labelled
        scheme, names = settle_tags(settled, column, spans=config.text is not None, scheme=config.scheme,
                                    labels=config.labels, known=known)  # fmt: skip
        made = cls(config, context, scheme, names)
        if len(names) < 2:
            if train is not None:
                made.examples(train, labelled=True, key="data.train")  # a bad cell may be why there are so few
                if config.text is not None:
                    raise UserError(
                        f"task.entities: no row of {train.name} has an entity in its column {config.entities!r}"
                    )
            where = "" if train is None else f"{train.name}: "
            raise UserError(
                f"{where}{column}: expected at least two different tags, found {', '.join(names) or 'none'}"
            )
        counts = None if train is None else functools.partial(made._count_words, train)
        kinds: dict[str, list[str]] = {}
        for name in names if scheme != "bare" else ():
            if name != OUTSIDE:
                kinds.setdefault(split_tag(name)[1], []).append(name)
        return replace(made, skew=make_skew(config, context, names, counts, kinds=kinds))

    @property
    def num_outputs(self) -> int:
        return len(self.label_names)

    @property
    def fields(self) -> tuple[Field, ...]:
        return Field("token_types", "token"), Field("labels", "token"), Field("weights", "token", np.float32)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        if self.scheme == "bare":
            return Metric("accuracy"), Metric("f1_macro"), Metric("loss", False)
        types = sorted({split_tag(name)[1] for name in self.label_names if name != OUTSIDE})
        each = [Metric(f"{n}/{t}", headline=False) for t in types for n in ("precision", "recall", "f1")]
        names = ("f1", "precision", "recall", "f1_macro", "accuracy")
        return (*map(Metric, names), Metric("loss", False), *each)

    def examples(self, table: Table, *, labelled: bool, key: str) -> Examples:
        data, tokenizer = self.context.data, self.context.tokenizer
        [column] = self.input_columns(self.config, table.columns)
        gold_column = self.config.tags if self.config.text is None else self.config.entities
        table.require(column, *((gold_column,) if labelled else ()), key=key)
        made: list[Example] = []
        labels: list[np.ndarray | None] = [None] * len(table.rows)
        read: dict[int, Words] = {}
        bad = BadRows(table, data, labelled=labelled, key=key)
        counts = Counter(truncated=0, widened_entities=0, entities_sharing_a_token=0, words_without_tokens=0)
        given = column == self.config.tokens
        written: Scheme = "bare"
        if labelled and self.config.text is None:
            written = detect_scheme(sentences_of(table, gold_column, self.config.labels))
        for i, row in enumerate(table.rows):
            place = column
            try:
                words = words_of_tokens(row[column]) if given else words_of_text(row[column], tokenizer)
                if labelled:
                    place = gold_column
                    labels[i] = self._gold(row[gold_column], words, written, counts)
            except UserError as error:
                bad.add(i, UserError(f"{table.where(i)}: {place}: {error}"))
                continue
            read[i] = words
        tokens = tokens_of_words(list(read.values()), tokenizer, self.context.tokens)
        for (i, words), pieces in zip(read.items(), tokens, strict=True):
            windows = word_windows(words, pieces, tokenizer, max_length=data.max_length, stride=data.stride)
            counts["truncated"] += len(windows) > 1
            counts["words_without_tokens"] += len(words) - sum(int((window.words >= 0).sum()) for window in windows)
            made += [tagged_example(window, i, labels[i]) for window in windows]
        bad.say()
        for name, count in counts.items():
            if count and name != "truncated":
                log.info("%s: %d %s", table.name, count, name.replace("_", " "))
        return Examples(table, made, labels, {**counts, "skipped": len(bad.errors)}, bad.errors)

    def _gold(self, value: Any, words: Words, written: Scheme, counts: Counter[str]) -> np.ndarray:
        """int32 [W]: ids of the words' tags in the model's scheme.

        Args:
          written: the scheme of the tags in the table.
        """
        if self.config.text is None:
            tags = tags_of_cell(value, words, self.config.labels)
            for tag in tags:
                check_mark(tag, written)
            if self.scheme != "bare":
                tags = [tag if tag == OUTSIDE or has_mark(tag) else check_tag(tag, self.label_names) for tag in tags]
            tags = convert_tags(tags, self.scheme)
        else:
            entities, widened, sharing = entities_of_cell(value, words)
            counts["widened_entities"] += widened
            counts["entities_sharing_a_token"] += sharing
            tags = tags_of_entities(entities, words, self.scheme)
        return np.asarray([self._ids[check_tag(tag, self.label_names)] for tag in tags], np.int32)

    def _count_words(self, table: Table) -> tuple[np.ndarray, int]:
        """Returns the words of each tag, int64 [C], and of all; rows that cannot be read are left out."""
        given = self.config.text is None
        [column] = self.text_columns(self.config)
        gold_column = self.config.tags if given else self.config.entities
        written: Scheme = detect_scheme(sentences_of(table, gold_column, self.config.labels)) if given else "bare"
        counts = np.zeros(len(self.label_names), np.int64)
        for row in table.rows:
            try:
                words = words_of_tokens(row[column]) if given else words_of_text(row[column], self.context.tokenizer)
                gold = self._gold(row[gold_column], words, written, Counter())
            except UserError:
                continue  # `examples` says so
            counts += np.bincount(gold, minlength=len(counts))
        return counts, int(counts.sum())

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.label_names)}

    @cached_property
    def _transitions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return transition_scores(self.label_names, self.scheme)

    @property
    def distribution(self) -> Literal["softmax", "sigmoid"]:
        return "softmax"

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Softmax cross-entropy of each word's tag at its first token, under `skew`."""
        if self.skew == NO_SKEW:
            return self._plain_loss(outputs, batch)
        return skewed_loss("multiclass", self.context.label_smoothing, self.skew)(outputs, batch)

    def _plain_loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        log_probs = jax.nn.log_softmax(outputs.astype(jnp.float32))
        targets = optax.smooth_labels(jax.nn.one_hot(batch["labels"], outputs.shape[-1]), self.context.label_smoothing)
        losses = -(targets * log_probs).sum(-1)
        return (losses * batch["weights"]).sum(), batch["weights"].sum()

    def measure(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Outputs:
        """With the loss without `skew`, so that it compares between runs."""
        total, weight = self._plain_loss(outputs, batch)
        sums = {"loss": total, "weight": weight}
        if self.config.decode == "viterbi":
            return Outputs(sums, tokens={"scores": jax.nn.log_softmax(outputs.astype(jnp.float32))})
        return Outputs(sums, tokens={"tags": outputs.argmax(-1).astype(jnp.int32)})

    def decode(self, example: Example, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """int32 [n] or float32 [n, C]: what stands at the words that this window answers."""
        [values] = outputs.values()
        return values[example.host.words >= 0]

    def answer(self, row: Mapping[str, Any], parts: Sequence[tuple[Example, np.ndarray]]) -> TaggedRow:
        """The tag of each word; O for a word without tokens, unless it stands inside an entity."""
        spans = parts[0][0].host.spans
        index = np.concatenate([example.host.words[example.host.words >= 0] for example, _ in parts])
        values = np.concatenate([part for _, part in parts])
        order = np.argsort(index)
        index, values = index[order], values[order]
        tags = np.full(len(spans), self._ids.get(OUTSIDE, 0), np.int16)
        tags[index] = viterbi(values, self._transitions) if self.config.decode == "viterbi" else values
        for gap in np.flatnonzero(np.diff(index) > 1).tolist():
            first, last = int(index[gap]), int(index[gap + 1])
            name = tag_between(self.label_names[tags[first]], self.label_names[tags[last]], self.label_names)
            if name is not None:
                tags[first + 1 : last] = self._ids[name]
        return TaggedRow(tags, spans)

    def _words(self, row: Mapping[str, Any], spans: np.ndarray) -> Words:
        """The words of a row that has been read before."""
        [column] = self.input_columns(self.config, tuple(row))
        if column == self.config.tokens:
            return words_of_tokens(row[column])
        return Words(row[column], tuple((start, end) for start, end in spans.tolist()), False)

    def _entities(self, tags: np.ndarray) -> list[Entity]:
        if self.scheme == "bare":
            return []
        return entities_of([self.label_names[int(i)] for i in tags], strict=self.config.strict)

    def prediction(self, row: Mapping[str, Any], kept: TaggedRow) -> dict[str, Any]:
        """{"tags", "entities"} of tokens, {"entities"} of a text; bare tags have no entities."""
        words = self._words(row, kept.spans)
        tags = [self.label_names[int(i)] for i in kept.tags]
        written = written_entities(self._entities(kept.tags), words)
        if self.scheme == "bare":
            return {"tags": tags}
        return {"tags": tags, "entities": written} if words.split else {"entities": written}

    def scores(self, sums: Mapping[str, float], answers: Sequence[Answer], dataset: Dataset) -> dict[str, float]:
        """`metrics.entities.entity_scores`, and the share of words with the right tag."""
        labelled = [answer for answer in answers if answer.label is not None]
        right = sum(int((answer.kept.tags == answer.label).sum()) for answer in labelled)
        words = sum(len(answer.label) for answer in labelled)
        whole = {"accuracy": right / max(1, words), **super().scores(sums, answers, dataset)}
        if self.scheme == "bare":
            gold = [bare_entities(answer.label, self.label_names) for answer in labelled]
            predicted = [bare_entities(answer.kept.tags, self.label_names) for answer in labelled]
            return {**whole, "f1_macro": entity_scores(gold, predicted)["f1_macro"]}
        gold = [self._entities(answer.label) for answer in labelled]
        return {**entity_scores(gold, [self._entities(answer.kept.tags) for answer in labelled]), **whole}

    def describe(self) -> dict[str, Any]:
        task = {"kind": self.config.kind, "scheme": self.scheme, "decode": self.config.decode}
        weights = described_weights(self.skew, self.label_names)
        return {"problem": "tagging", "label_names": list(self.label_names), "task": task, **weights}

    def show(self, batch: Batch) -> list[str]:
        def describe(slot: int, inside: np.ndarray) -> str:
            names = self.context.tokenizer.tokens(batch["tokens"][0][inside])
            tagged = zip(names, batch["labels"][0][inside], batch["weights"][0][inside], strict=True)
            return ": " + " ".join(f"{n}/{self.label_names[int(i)]}" if w else n for n, i, w in tagged)

        return show_first_row(batch, "example", describe)

    def remarks(self, metric: str, answers: Sequence[Answer]) -> list[str]:
        labelled = [answer for answer in answers if answer.label is not None]
        if not labelled:
            return []
        gold, decided = (np.concatenate(side).astype(np.int64) for side in
                         zip(*((a.label, a.kept.tags) for a in labelled), strict=True))  # fmt: skip
        return accuracy_remarks(metric, self.label_names, gold, decided)

    def report(self, answers: Sequence[Answer]) -> list[ReportSection]:
        rows = [
            TaggedSentence(line, self._words(answer.row, answer.kept.spans), answer.label, answer.kept.tags)
            for line, answer in enumerate(answers, 1)
            if answer.label is not None
        ]
        return tagging_sections(rows, self.label_names, self._entities)

    def baselines(self, train: Dataset, test: Dataset) -> dict[str, dict[str, float]]:
        """`most_frequent_tag`: of each word that which it has most often in training; O of words not seen there."""
        split, other = train.examples(), test.examples()
        if not self.config.baselines or split is None or other is None:
            return {}
        seen = ((self._strings(split.table.rows[row], spans), split.labels[row].tolist())
                for row, spans in self._spans(split).items())  # fmt: skip
        asked = {row: (spans, self._strings(other.table.rows[row], spans)) for row, spans in self._spans(other).items()}
        tags = most_frequent_tags(seen, (words for _, words in asked.values()), self._ids.get(OUTSIDE, 0))
        answers = [
            Answer(other.table.rows[row], other.labels[row], TaggedRow(np.asarray(found), spans))
            for (row, (spans, _)), found in zip(asked.items(), tags, strict=True)
        ]
        scores = self.scores({"loss": 0.0, "weight": 1.0}, answers, test)
        del scores["loss"]
        return {"most_frequent_tag": scores}

    def _spans(self, split: Examples) -> dict[int, np.ndarray]:
        """The characters of the words of each row of a split."""
        return {example.row: example.host.spans for example in split.examples}

    def _strings(self, row: Mapping[str, Any], spans: np.ndarray) -> list[str]:
        words = self._words(row, spans)
        return [words.text[start:end] for start, end in words.spans]

    def hf_config(self) -> dict[str, Any]:
        return {
            "id2label": {str(i): name for i, name in enumerate(self.label_names)},
            "label2id": {name: i for i, name in enumerate(self.label_names)},
        }
