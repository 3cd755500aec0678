"""Extractive question answering: the part of a context that answers a question, or that it has no answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from pydantic import Field as FieldInfo
from scipy.special import softmax

from jaxlm.data.augmentation.editor import Editor
from jaxlm.data.dataset import Dataset
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.fields import Batch, Field
from jaxlm.metrics.squad import AnswerScore, BestThreshold, best_threshold
from jaxlm.objectives.spans import span_loss
from jaxlm.report.sections import ReportSection
from jaxlm.tasks.answer_rows import QuestionColumns, QuestionRows
from jaxlm.tasks.answer_settings import AnswerSettings, settle
from jaxlm.tasks.answer_windows import Span, best_spans, merge_spans
from jaxlm.tasks.base import RowTask
from jaxlm.tasks.first_row import show_first_row
from jaxlm.tasks.labelled_edits import edit_answers
from jaxlm.tasks.question_answering_baselines import sentence_like_question
from jaxlm.tasks.question_answering_report import AnsweredQuestion, answer_sections
from jaxlm.tasks.records import Answer, Context, Metric, Outputs, Request, TaskConfig

log = logging.getLogger("jaxlm")

_CANDIDATES = 20
"""Spans that are kept of a question; probabilities are shares among them."""


class QuestionAnsweringConfig(TaskConfig):
    """Fine-tuning to find the part of a context that answers a question."""

    kind: Literal["question_answering"] = "question_answering"
    """What is learned: the first and the last token of the answer."""
    question: str = "question"
    """Question column."""
    context: str = "context"
    """Column of the texts that answers are parts of; long ones are read in windows that share `data.stride` tokens."""
    answers: str = "answers"
    """Column of the answers: {"text": [...], "answer_start": [...]} or a list of {"text", "answer_start"}."""
    id: str = "id"
    """Column of the questions' ids, which differ; rows may do without."""
    no_answer: bool | Literal["auto"] = "auto"
    """Whether a question may have no answer, as in SQuAD 2; `auto`: whether one of the training rows has none."""
    scoring: Literal["auto", "squad", "cmrc"] = "auto"
    """How answers are compared: by words as in SQuAD's scripts, or by Chinese characters as in CMRC 2018's; `auto`: the
    latter where more than half of the letters of the training contexts are Chinese characters."""
    max_answer_tokens: int = FieldInfo(default=30, gt=0)
    """Longest answer that is predicted, in tokens."""
    n_best: int = FieldInfo(default=1, gt=0, le=_CANDIDATES)
    """Answers that a prediction lists; above 1, as `n_best`, the best first."""
    baselines: bool = False
    """Also score simple systems on the test (else validation) rows: the sentence most like the question, and, where
    questions may have no answer, none for all."""

    @classmethod
    def of_texts(cls, columns: Sequence[str]) -> QuestionAnsweringConfig:
        if len(columns) != 2:
            raise UserError(f"--text: expected the columns of question and context, found {', '.join(columns)}")
        return cls(question=columns[0], context=columns[1])


class Candidates(NamedTuple):
    """What is kept of a question: the logits of "no answer", and the best spans, the best first."""

    null: float
    spans: tuple[Span, ...]


@dataclass(frozen=True, eq=False)
class QuestionAnswering(RowTask):
    """Finds the part of a context that answers a question.

    Attributes:
      config: the section `task`.
      context: settings and tokenizer.
      settings: what the data settled.
    """

    config: QuestionAnsweringConfig
    context: Context
    settings: AnswerSettings

    Config = QuestionAnsweringConfig
    head = "question_answering"
    labels_inside = True

    @property
    def num_outputs(self) -> int:
        return 2

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            Field("token_types", "token"),
            Field("start_positions", "position"),
            Field("end_positions", "position"),
        )

    @classmethod
    def text_columns(cls, config: QuestionAnsweringConfig) -> tuple[str, ...]:
        return config.question, config.context

    @classmethod
    def group_columns(cls, config: QuestionAnsweringConfig) -> tuple[str, ...]:
        """Questions over one context stay together."""
        return (config.context,)

    @classmethod
    def open(cls, config: QuestionAnsweringConfig, request: Request) -> TableSources:
        clean = request.data.clean
        for key in ("unicode", "control_characters", "whitespace"):
            if getattr(clean, key) != type(clean).model_fields[key].default:
                raise UserError(
                    f"data.clean.{key}: it rewrites texts, and answers are placed in their contexts by characters; "
                    "leave it out"
                )
        return super().open(config, request)

    @classmethod
    def edit_row(cls, config: QuestionAnsweringConfig, row: dict[str, Any], editor: Editor) -> dict[str, Any] | None:
        context, question = row.get(config.context), row.get(config.question)
        if not isinstance(context, str) or not isinstance(question, str):
            return None
        try:
            edited = edit_answers(context, row.get(config.answers), editor)
        except ValueError:
            return None  # `examples` says what is wrong with the row
        if edited is None:
            return None
        names = {config.context: edited[0], config.answers: edited[1], config.question: editor.edit(question)}
        return {**row, **names, config.id: None} if config.id in row else {**row, **names}

    @classmethod
    def create(
        cls, config: QuestionAnsweringConfig, context: Context, sources: TableSources | None
    ) -> QuestionAnswering:
        """What the config leaves open is settled by the training rows, else by the checkpoint.

        Raises:
          UserError: a missing column, or label smoothing.
        """
        if context.label_smoothing:
            raise UserError("train.label_smoothing: the ends of an answer are not smoothed; leave it out")
        tables = {} if sources is None else sources.tables
        settings = settle(tables, config.context, config.answers, context.hf_config)
        if config.no_answer != "auto":
            settings = settings._replace(no_answer=config.no_answer)
        if config.scoring != "auto":
            settings = settings._replace(scoring=config.scoring)
        log.info("task: %s", settings.summary())
        return cls(config, context, settings)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        names = ("f1", "exact_match")
        if self.settings.no_answer:
            sides = ("has_answer_f1", "no_answer_f1", "has_answer_exact_match", "no_answer_exact_match")
            names = ("best_f1", *names, *sides, "best_exact_match")
        return (
            Metric(names[0]),
            Metric("loss", higher_is_better=False),
            *(Metric(name, headline=not name.endswith("r_exact_match")) for name in names[1:]),
        )

    def examples(self, table: Table, *, labelled: bool, key: str) -> Examples:
        config = self.config
        columns = QuestionColumns(config.question, config.context, config.answers, config.id)
        rows = QuestionRows(table, columns, self.context, no_answer=self.settings.no_answer)
        return rows.examples(labelled=labelled, key=key)

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return span_loss(outputs, batch)

    def measure(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Outputs:
        return Outputs(super().measure(outputs, batch).sums, tokens={"logits": outputs})

    def decode(self, example: Example, outputs: Mapping[str, np.ndarray]) -> Candidates:
        logits = outputs["logits"]
        spans = best_spans(logits, example.host, _CANDIDATES, self.config.max_answer_tokens)
        return Candidates(float(logits[0].astype(np.float64).sum()), tuple(spans))

    def answer(self, row: Mapping[str, Any], parts: Sequence[tuple[Example, Candidates]]) -> Candidates:
        """The best spans of all windows; "no answer" as the window that believes in it least."""
        windows = [part for _, part in parts]
        spans = merge_spans([part.spans for part in windows], _CANDIDATES)
        return Candidates(min(part.null for part in windows), tuple(spans))

    def prediction(self, row: Mapping[str, Any], kept: Candidates) -> dict[str, Any]:
        """{"answer", "start", "end", "score"}: characters of the context, and the answer's probability among the
        candidates; "" for no answer. Where that is possible, `no_answer_score` is its probability."""
        context = str(row[self.config.context])
        logits = [span.score for span in kept.spans]
        if self.settings.no_answer:
            logits.append(kept.null)
        shares = softmax(np.asarray(logits, np.float64)).tolist() if logits else []
        listed = [
            {"answer": context[span.start : span.end], "start": span.start, "end": span.end, "score": share}
            for span, share in zip(kept.spans, shares, strict=False)
        ]
        none: dict[str, Any] = {"answer": "", "start": 0, "end": 0, "score": 0.0}
        extra: dict[str, Any] = {}
        if self.settings.no_answer:
            none["score"] = extra["no_answer_score"] = shares[-1]
        chosen = none if not listed or self._abstains(kept) else listed[0]
        if self.config.n_best > 1:
            others = [entry for entry in (*listed, *([none] if extra else [])) if entry is not chosen]
            others.sort(key=lambda entry: -entry["score"])
            extra["n_best"] = [chosen, *others][: self.config.n_best]
        return {**chosen, **extra}

    def _difference(self, kept: Candidates) -> float:
        """By how much "no answer" exceeds the best answer."""
        return kept.null - kept.spans[0].score if kept.spans else np.finfo(np.float32).max.item()

    def _abstains(self, kept: Candidates) -> bool:
        return self.settings.no_answer and self._difference(kept) > self.settings.threshold

    def _best_text(self, answer: Answer) -> str:
        spans = answer.kept.spans
        return str(answer.row[self.config.context])[spans[0].start : spans[0].end] if spans else ""

    def scores(self, sums: Mapping[str, float], answers: Sequence[Answer], dataset: Dataset) -> dict[str, float]:
        """Scores from 0 to 1 as the official scripts define them; of v2, `best_*` are those of the best threshold."""
        labelled = [answer for answer in answers if answer.label is not None]
        found = super().scores(sums, answers, dataset)
        if not labelled:
            return found
        given = ["" if self._abstains(a.kept) else self._best_text(a) for a in labelled]
        compared = [self.settings.compare(text, a.label) for text, a in zip(given, labelled, strict=True)]
        found |= _means(compared)
        if not self.settings.no_answer:
            return found
        for name, has_answer in (("has_answer", True), ("no_answer", False)):
            side = [score for score, a in zip(compared, labelled, strict=True) if bool(a.label) == has_answer]
            found |= {f"{name}_{metric}": value for metric, value in _means(side).items()}
        for metric in AnswerScore._fields:
            found[f"best_{metric}"] = self._best_threshold(labelled, metric).score
        return found

    def _best_threshold(self, labelled: Sequence[Answer], metric: str) -> BestThreshold:
        texts = [self._best_text(a) for a in labelled]
        scores = [getattr(self.settings.compare(t, a.label), metric) for t, a in zip(texts, labelled, strict=True)]
        differences = [self._difference(a.kept) for a in labelled]
        return best_threshold(scores, list(map(bool, texts)), [bool(a.label) for a in labelled], differences)

    def tune(self, answers: Sequence[Answer]) -> QuestionAnswering:
        """Chooses the threshold of "no answer" of the highest F1, in the middle between two questions."""
        labelled = [answer for answer in answers if answer.label is not None]
        if not self.settings.no_answer or not labelled:
            return self
        best = self._best_threshold(labelled, "f1")
        log.info("task: no answer above a difference of %.3f (validation F1 %.4f)", best.middle, best.score)
        return replace(self, settings=self.settings._replace(threshold=best.middle))

    def describe(self) -> dict[str, Any]:
        columns = {name: getattr(self.config, name) for name in ("question", "context", "answers")}
        return {
            **super().describe(),
            "task": {"kind": self.config.kind, **columns, **self.settings._asdict()},
        }

    def show(self, batch: Batch) -> list[str]:
        tokens, decode = batch["tokens"][0], self.context.tokenizer.decode

        def describe(slot: int, inside: np.ndarray) -> str:
            start, end = int(batch["start_positions"][0, slot]), int(batch["end_positions"][0, slot])
            answer = "no answer here" if start == int(np.argmax(inside)) else decode(tokens[start : end + 1])
            return f", answer {answer!r}: {decode(tokens[inside], skip_special_tokens=False)}"

        return [f"task: {self.settings.summary()}", *show_first_row(batch, "window", describe)]

    def report(self, answers: Sequence[Answer]) -> list[ReportSection]:
        questions = []
        for line, answer in enumerate(answers, 1):
            if answer.label is None:
                continue
            predicted = self.prediction(answer.row, answer.kept)
            score = self.settings.compare(predicted["answer"], answer.label)
            question, context = (str(answer.row[column]) for column in self.text_columns(self.config))
            best = self.settings.compare(self._best_text(answer), answer.label).f1 if answer.label else 0.0
            difference = self._difference(answer.kept)
            questions.append(
                AnsweredQuestion(line, question, context, answer.label, predicted, score, best, difference)
            )
        threshold = self.settings.threshold if self.settings.no_answer else None
        return answer_sections(questions, len(answers), threshold, words=self.settings.scoring == "squad")

    def baselines(self, train: Dataset, test: Dataset) -> dict[str, dict[str, float]]:
        split = test.examples()
        if not self.config.baselines or split is None:
            return {}
        rows = [(split.table.rows[i], label) for i, label in enumerate(split.labels) if label is not None]
        named = {"sentence most like the question": [sentence_like_question(*self._texts(row)) for row, _ in rows]}
        if self.settings.no_answer:
            named["no answer"] = [""] * len(rows)
        return {
            name: _means([self.settings.compare(text, label) for text, (_, label) in zip(texts, rows, strict=True)])
            for name, texts in named.items()
        }

    def _texts(self, row: Mapping[str, Any]) -> tuple[str, str]:
        return str(row[self.config.question]), str(row[self.config.context])

    def hf_config(self) -> dict[str, Any]:
        return {"question_answering": self.settings._asdict()}


def _means(scores: Sequence[AnswerScore]) -> dict[str, float]:
    if not scores:
        return {}
    return {name: float(np.mean([getattr(score, name) for score in scores])) for name in AnswerScore._fields}
