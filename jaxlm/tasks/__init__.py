"""Tasks by `task.kind`: one line each."""

from __future__ import annotations

from jaxlm.errors import UserError
from jaxlm.tasks.base import Task
from jaxlm.tasks.causal_lm import CausalLM
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.embedding import Embedding
from jaxlm.tasks.masked_lm import MaskedLM
from jaxlm.tasks.multiple_choice import MultipleChoice
from jaxlm.tasks.prefix_lm import PrefixLM
from jaxlm.tasks.question_answering import QuestionAnswering
from jaxlm.tasks.replaced_tokens import ReplacedTokens
from jaxlm.tasks.span_corruption import SpanCorruption
from jaxlm.tasks.summarization import Summarization
from jaxlm.tasks.tagging import Tagging
from jaxlm.tasks.text_to_text import TextToText
from jaxlm.tasks.translation import Translation


def kind_of(task: type[Task]) -> str:
    """The `task.kind` that a task goes by."""
    return task.Config.model_fields["kind"].default


TASKS: dict[str, type[Task]] = {
    kind_of(task): task
    for task in (
        Classification,
        Tagging,
        QuestionAnswering,
        MultipleChoice,
        Embedding,
        TextToText,
        Translation,
        Summarization,
        CausalLM,
        PrefixLM,
        MaskedLM,
        SpanCorruption,
        ReplacedTokens,
    )
}


def register(task: type[Task]) -> type[Task]:
    """Adds a task from outside the package; also a decorator of the class.

    Raises:
      UserError: its `kind` is taken by another task.
    """
    kind = kind_of(task)
    if TASKS.setdefault(kind, task) is not task:
        raise UserError(f"task.kind={kind}: {TASKS[kind].__name__} goes by that kind already; choose another")
    return task
