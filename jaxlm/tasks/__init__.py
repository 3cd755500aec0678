"""Tasks by `task.kind`: one line each."""

from jaxlm.tasks.classification import Classification

TASKS = {"classification": Classification}

__all__ = ["TASKS", "Classification"]
