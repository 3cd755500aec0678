"""The config section `task` of the tasks that write."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field as FieldInfo
from pydantic import model_validator

from jaxlm.errors import UserError
from jaxlm.section import Section
from jaxlm.tasks.records import TaskConfig
from jaxlm.tasks.text_template import Template


class EvalConfig(Section):
    """Which texts are written at the evaluations during training; at the end, all are."""

    generate: bool = True
    """Write texts and score them; false: the loss of the given targets alone, which then chooses the best
    checkpoint."""
    limit: int | None = FieldInfo(default=500, gt=0)
    """Only the first rows of the split are written; null: all. The loss is that of all rows."""
    samples: int = FieldInfo(default=3, ge=0)
    """Texts that are shown beside their references in the log, in TensorBoard and in the report."""


class WritingConfig(TaskConfig):
    """What the tasks that write have in common."""

    source: str = "input"
    """Column of the texts that are read; of a list of sentences, all of them."""
    target: str = "output"
    """Column of the texts that are to be written. A list holds several references: training learns the first."""
    prefix: str = ""
    """Stands before each text that is read, such as T5's `summarize: `."""
    template: str | None = None
    """The text that is read, with columns in braces: `question: {question} context: {context}`; `{source}` is the
    column `source`. Absent: prefix and source, and for a decoder alone a line feed behind them."""
    eval: EvalConfig = EvalConfig()
    """Texts written at evaluations."""
    baselines: bool = False
    """Also score simple systems on the test (else validation) rows."""

    @model_validator(mode="after")
    def _template_or_prefix(self) -> WritingConfig:
        if self.template is not None and self.prefix:
            raise ValueError("expected prefix or template, not both; write the prefix into the template")
        if self.template is not None:
            Template.parse(self.template, self.source)
        return self

    @classmethod
    def of_checkpoint(cls) -> WritingConfig:
        return cls.model_validate({"source": "text"})

    @classmethod
    def of_texts(cls, columns: Sequence[str]) -> WritingConfig:
        if len(columns) != 1:
            raise UserError(f"--text: expected the column that is read, found {', '.join(columns)}")
        return cls.model_validate({"source": columns[0]})

    def key_of(self, column: str) -> str:
        if self.template is not None and column in self.columns:
            return "task.template"
        return super().key_of(column)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (self.source,) if self.template is None else Template.parse(self.template, self.source).columns

    @property
    def literals(self) -> tuple[str, ...]:
        """What stands around the columns in each text that is read, without white space around it."""
        parts = [self.prefix]
        if self.template is not None:
            parts = [literal for literal, _ in Template.parse(self.template, self.source).parts]
        return tuple(text for part in parts if (text := part.strip()))
