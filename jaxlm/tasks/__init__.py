"""Tasks by `task.kind`: one line each."""

from jaxlm.tasks.causal_lm import CausalLM
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.masked_lm import MaskedLM
from jaxlm.tasks.prefix_lm import PrefixLM
from jaxlm.tasks.replaced_tokens import ReplacedTokens
from jaxlm.tasks.span_corruption import SpanCorruption

TASKS = {"classification": Classification}
"""Fine-tuning on labelled rows."""
PRETRAINING = {
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "prefix_lm": PrefixLM,
    "replaced_tokens": ReplacedTokens,
    "span_corruption": SpanCorruption,
}
"""Pretraining on corpora."""

__all__ = ["PRETRAINING", "TASKS", "Classification"]
