"""The tasks that `jaxlm init --task` may name."""

from __future__ import annotations

TASKS = (
    "classification", "pairs", "regression", "multi-label", "tagging", "question_answering", "multiple_choice",
    "embedding", "translation", "summarization", "text_to_text",
)  # fmt: skip
"""What `--task` may say."""
