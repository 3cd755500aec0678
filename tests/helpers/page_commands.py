"""Lines of the pages' shell blocks, run in this process."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from helpers.finetuning_runs import run


def execute(command: str) -> str:
    """Runs a line of a shell block, `[echo TEXT |] (jaxlm | python scripts/)COMMAND ... [> FILE]`, in this process.

    Returns what it prints.
    """
    found = re.fullmatch(r"(?:echo (?P<said>'.*'|\".*\") \| )?(?P<call>.*?)(?: > (?P<file>\S+))?", command)
    assert found is not None
    program, *words = shlex.split(found["call"])
    if program == "python":
        words[0] = words[0].removeprefix("scripts/").removesuffix(".py").replace("_", "-")
    else:
        assert program == "jaxlm"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        said = " ".join(shlex.split(found["said"] or "")).encode()
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said)))
        assert run(*words) == 0, command
    if found["file"]:
        Path(found["file"]).write_text(printed.getvalue(), encoding="utf-8")
    return printed.getvalue()
