"""The run directory: where each file of a run lies, one writer at a time, and writes that a crash cannot tear.

With several processes, only the first opens, locks and writes it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.files import atomic_write, explain_write_errors, lock_file
from jaxlm.local_paths import check_local

# The files of a run directory; every part of the program names them by these.
CONFIG = "config.yaml"
"""The resolved config."""
METRICS = "metrics.jsonl"
"""What was measured during training (`run.tracking`)."""
SUMMARY = "summary.json"
ANALYSIS = "analysis.json"
"""Sections of the report that the task made (`report.sections`)."""
REPORT = "report.html"
SAMPLES = "samples.jsonl"
"""Texts that a language model wrote during training."""
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
PREDICTIONS = "predictions"
"""Folder of `<split>.jsonl`."""
MODEL = "model"
"""Folder in HF format."""
ADAPTER = "adapter"
"""Folder in PEFT's format, of a run that trained adapters."""
LOCK = "run.lock"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunDir:
    """`runs/<name>/`. The constructor touches nothing: it serves readers; `open` is for the run itself."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def model(self) -> Path:
        return self.path / MODEL

    @property
    def adapter(self) -> Path:
        return self.path / ADAPTER

    @property
    def finished(self) -> bool:
        """Whether the run ended by itself: `status` in summary.json is "finished"."""
        summary = self.read_json(SUMMARY)
        return isinstance(summary, dict) and summary.get("status") == "finished"

    @classmethod
    def open(cls, root: Path, name: str, *, restart: bool) -> RunDir:
        """Makes the directory, or takes up the one that is there, and checks that it can be written.

        Args:
          root: parent of run directories (`logging.directory`), made if absent.
          name: the run's name.
          restart: move an existing directory aside, to the first free `<name>.old-<n>`; nothing is ever deleted.

        Raises:
          UserError: it cannot be made or written; or, with `restart`, another process is writing it.
        """
        check_local(root, "logging.directory")
        run = cls(Path(root).absolute() / name)
        try:
            if restart and run.path.is_dir():
                with run.lock():
                    number = 1
                    while (aside := run.path.with_name(f"{name}.old-{number}")).exists():
                        number += 1
                    run.path.rename(aside)
                _log.info("%s moved to %s", run.path, aside.name)
            run.path.mkdir(parents=True, exist_ok=True)
            # Mode bits do not tell: root may write anything, and nobody a read-only file system.
            with tempfile.TemporaryFile(dir=run.path):
                pass
        except (FileExistsError, NotADirectoryError) as error:
            raise run._in_the_way(str(error)) from error
        except OSError as error:
            raise run._unwritable(str(error)) from error
        return run

    def check_place(self) -> None:
        """Checks, without writing anything, that the directory could be made and written.

        Raises:
          UserError: as `open`.
        """
        check_local(self.path, "logging.directory")
        nearest = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not nearest.is_dir():
            raise self._in_the_way(str(nearest))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise self._unwritable(f"no permission to write in {nearest}")

    def _in_the_way(self, file: str) -> UserError:
        return UserError(
            f"{self.path}: a file stands where the run directory, or one of its parents, should be ({file}). "
            "Move it away, or choose another place with logging.directory=DIR or name=NAME"
        )

    def _unwritable(self, why: str) -> UserError:
        return UserError(
            f"{self.path}: the run directory cannot be written ({why}). "
            "Make it writable, or choose another place with logging.directory=DIR"
        )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; the system lets it go when the process ends, however it ends.

        Raises:
          UserError: another process holds it; the message names its id.
        """

        def refuse(process: str) -> None:
            raise UserError(
                f"{self.path}: process {process} is working on this run. "
                "Wait until it ends or stop it, or choose another name=NAME"
            )

        with lock_file(self.path / LOCK, on_busy=refuse, without_locks="run nothing else on it"):
            yield

    def write_text(self, name: str, text: str) -> None:
        """Writes a file, whole or not at all; a reader sees the old text or the new.

        Args:
          name: relative to the run directory; folders are made.
          text: written in UTF-8.

        Raises:
          RunFailure: the disk is full, for instance; the old file is intact.
        """
        path = self.path / name
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, sync=True) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        """Writes a value as JSON, as `write_text` does. NaN and infinities, which JSON lacks, become null."""
        self.write_text(name, json.dumps(_without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """The value of a JSON file, None if there is no such file.

        Raises:
          UserError: the file is not JSON.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{path}: expected JSON: {error}. Delete the file or bring it back from a copy") from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
