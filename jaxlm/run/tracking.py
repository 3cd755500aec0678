"""Run logging: progress line, metrics.jsonl, TensorBoard.

metrics.jsonl is the record: one JSON object to a line, `kind` ("train" or "evaluation"), `step`, `split` (evaluations
only), the values, and `time` (seconds since 1970). A value that is not finite is written as null, since JSON has
neither NaN nor infinity. The file of a resumed run equals that of an undisturbed one, but for the times.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxlm.console import printable, stderr_console
from jaxlm.errors import RunFailure, UserError
from jaxlm.files import atomic_write
from jaxlm.run.event_file import EventFile, Row
from jaxlm.run.run_dir import METRICS, SAMPLES, TENSORBOARD
from jaxlm.run.trackers import Trackers

# How the values of a training step are shown, in this order; others go to the files only.
_SHOWN: dict[str, Callable[[float], str]] = {
    "loss": lambda v: f"loss {v:.4f}",
    "learning_rate": lambda v: f"lr {v:.2e}",
    "tokens_per_s": lambda v: f"{v:,.0f} tok/s",
    "padding_share": lambda v: f"padding {v:.1%}",
}

_READ = 200
"""Characters that the log shows of the text that a sample answers."""


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics.jsonl, null read as NaN; empty if there is no such file.

    A last line that a killed run left half-written is passed over. Raises UserError for any other line that is no JSON.
    """
    rows = [row for _, row in _read_lines(run_dir / METRICS)]
    return [{key: math.nan if value is None else value for key, value in row.items()} for row in rows]


def _read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each line as it stands, and what it says."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8", errors="replace").removesuffix("\n").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("no step")
            rows.append((line, row))
        except ValueError:
            if number < len(lines):  # the last one may be torn, or the file empty
                raise UserError(
                    f"{path}, line {number}: expected a JSON object with an integer step; found {line[:80]!r}. "
                    "Remove the line, or start over with train.restart=true"
                ) from None
    return rows


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("kind"), row["step"], row.get("split")


class Tracker:
    """Logs the progress of a run; a context manager.

    Args:
      run_dir: an existing run directory; metrics.jsonl and tensorboard/ are written in it.
      resume_step: the step of the restored checkpoint, 0 for a new run. Rows beyond it are dropped, since those steps
        run again, and a row that is logged a second time replaces the first.
      total_steps: where the run ends.
      headlines: evaluation metrics that the console shows, in this order; (): all but those of single classes.
      enabled: false on all processes but the first; every method then does nothing.
      trackers: what hears of the same rows and texts.
      console: where progress goes; absent: stderr. A terminal gets a progress bar, anything else one plain line per
        call of `log_train`.

    Raises:
      RunFailure: a file in `run_dir` cannot be written.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        resume_step: int,
        total_steps: int,
        headlines: Sequence[str] = (),
        tensorboard: bool = True,
        enabled: bool = True,
        trackers: Trackers | None = None,
        console: Console | None = None,
    ) -> None:
        self._enabled = enabled
        if not enabled:
            return
        self._path = run_dir / METRICS
        self._console = console or stderr_console()
        self._total_steps, self._headlines = total_steps, headlines
        earlier = [(line, row) for line, row in _read_lines(self._path) if row["step"] <= resume_step]
        self._kept = {_key(row): line for line, row in earlier} if resume_step else {}
        try:
            self._rewrite(self._kept.values())
        except OSError as error:
            raise RunFailure(f"cannot write in {run_dir}: {error.strerror or error}") from error
        rows = (json.loads(line) for line in self._kept.values())
        self._board = EventFile(run_dir / TENSORBOARD, map(_event, rows)) if tensorboard else None
        if self._board and resume_step:
            self._restore_texts(run_dir / SAMPLES, resume_step)
        self._trackers = trackers or Trackers({})
        self._progress, self._bar = _progress_bar(self._console, resume_step, total_steps)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def log_train(self, step: int, values: Mapping[str, float], *, seconds_left: float | None = None) -> None:
        """Logs what was measured since the last call: loss, learning_rate, grad_norm, tokens_per_s, padding_share.

        Args:
          seconds_left: until the last step; None: not known yet.
        """
        if not self._enabled:
            return
        self._write({"kind": "train", "step": step}, values)
        shown = " ".join(show(float(values[name])) for name, show in _SHOWN.items() if name in values)
        if self._progress:
            self._progress.update(self._bar, completed=step, values=shown)
        else:
            self.log(f"step {step}/{self._total_steps}  {shown}  eta {_eta(seconds_left)}")

    def log_evaluation(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Logs the metrics of one evaluation; all go to metrics.jsonl, the headlines to the console."""
        if not self._enabled:
            return
        self._write({"kind": "evaluation", "step": step, "split": split}, values)
        names = [name for name in self._headlines if name in values] or [name for name in values if "/" not in name]
        shown = "  ".join(f"{name} {float(values[name]):.4f}" for name in names)
        self.log(f"step {step}/{self._total_steps}  {split}: {shown}")

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Logs texts that a model wrote: {"prompt", "text"} each, and `reference` where there is one."""
        if not self._enabled:
            return
        for sample in samples:
            beside = f" (reference: {sample['reference']!r})" if "reference" in sample else ""
            read = sample["prompt"] if len(sample["prompt"]) <= _READ else f"{sample['prompt'][:_READ].rstrip()} ..."
            self.log(f"sample: {read!r} -> {sample['text']!r}{beside}")
        if self._board:
            self._board.add_texts(step, time.time(), _texts(samples))
        self._trackers.log_texts(step, samples)

    def log_summary(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Hands the final scores, by split, to the trackers; called when the run is finished."""
        if self._enabled:
            named = {f"{split}/{name}": value for split, values in scores.items() for name, value in values.items()}
            self._trackers.set_summary({f"final/{name}": value for name, value in _told(named).items()})

    def _restore_texts(self, path: Path, resume_step: int) -> None:
        """Puts the samples of earlier steps into the new event file; lines that are damaged stay out of it."""
        by_step: dict[int, list[dict[str, Any]]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            for line in path.read_text("utf-8", errors="replace").split("\n"):
                sample = json.loads(line or "{}")
                if 0 <= int(sample.get("step", -1)) <= resume_step:
                    by_step.setdefault(int(sample["step"]), []).append(sample)
        for step, samples in by_step.items():
            if self._board:
                self._board.add_texts(step, time.time(), _texts(samples))

    def set_progress(self, step: int) -> None:
        """Moves the progress bar; cheap enough for every step."""
        if self._enabled and self._progress:
            self._progress.update(self._bar, completed=step)

    def log(self, message: str) -> None:
        """Prints one line, above the progress bar if there is one."""
        if self._enabled:
            line = printable(f"{time.strftime('%H:%M:%S')} {message}")
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Ends the progress bar and flushes the files; a second call does nothing."""
        if not self._enabled:
            return
        self._enabled = False
        if self._progress:
            self._progress.stop()
        if self._board:
            self._board.close()
        self._trackers.finish()
        with contextlib.suppress(OSError):  # all of it is written
            self._file.close()

    def _write(self, row: dict[str, Any], values: Mapping[str, float]) -> None:
        numbers = {name: float(value) for name, value in values.items()}
        try:
            if self._kept.pop(_key(row), None) is not None:
                self._file.close()
                self._rewrite(line for line, old in _read_lines(self._path) if _key(old) != _key(row))
            row |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            row["time"] = round(time.time(), 3)
            line = memoryview(json.dumps(row, allow_nan=False).encode() + b"\n")
            while line:  # without a buffer: a killed run loses nothing it logged, and closing cannot fail
                line = line[self._file.write(line) :]
        except OSError as error:
            raise RunFailure(f"cannot write {self._path}: {error.strerror or error}") from error
        if self._board:
            self._board.add(*_event(row))
        self._trackers.log(row["step"], _told(_event(row)[2]))

    def _rewrite(self, lines: Iterable[str]) -> None:
        """Replaces the file by `lines` atomically, and opens it for more."""
        with atomic_write(self._path) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines), "utf-8")
        self._file = io.FileIO(self._path, "a")


def _eta(seconds_left: float | None) -> str:
    if seconds_left is None:
        return "-"
    minutes, seconds = divmod(round(seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _texts(samples: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {f"samples/{number}": _markdown(sample) for number, sample in enumerate(samples, 1)}


def _markdown(sample: Mapping[str, Any]) -> str:
    """A sample as TensorBoard shows it: each text in a block of its own, since texts may hold any mark."""
    names = (name for name in ("prompt", "text", "reference") if name in sample)
    return "\n\n".join(
        f"**{name}**\n\n" + "\n".join(f"    {line}" for line in str(sample[name]).split("\n")) for name in names
    )


def _event(row: Mapping[str, Any]) -> Row:
    """A row of metrics.jsonl for TensorBoard, under tags such as `train/loss`; without per-class values."""
    board = "train" if row.get("kind") == "train" else row.get("split")
    values = {
        f"{board}/{name}": math.nan if value is None else float(value)
        for name, value in row.items()
        if name not in ("kind", "step", "split", "time") and "/" not in name
    }
    return row["step"], float(row.get("time") or 0.0), values


def _told(values: Mapping[str, float]) -> dict[str, float]:
    """What trackers hear of tags and values: finite ones, by names that all of them take; none of single classes."""
    named = {tag.replace("validation (best)", "validation_best"): value for tag, value in values.items()}
    return {tag: float(value) for tag, value in named.items() if tag.count("/") == 1 and math.isfinite(value)}


def _progress_bar(console: Console, resume_step: int, total_steps: int) -> tuple[Progress | None, Any]:
    if not console.is_terminal:
        return None, None
    progress = Progress(
        MofNCompleteColumn(),
        *([BarColumn(bar_width=20)] if console.width >= 100 else []),  # else the numbers would be cut off
        TextColumn("{task.fields[values]}"),
        TextColumn("eta"),
        TimeRemainingColumn(compact=True),
        console=console,
        refresh_per_second=4,
        redirect_stdout=False,  # predictions may go there
    )
    bar = progress.add_task("", total=total_steps, completed=resume_step, values="")
    progress.start()
    return progress, bar
