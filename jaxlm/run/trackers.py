"""Experiment trackers beside TensorBoard (`logging.trackers`): wandb, mlflow, trackio, behind one small interface."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.run.run_dir import CONFIG

log = logging.getLogger("jaxlm")

IDS = "trackers.json"
"""In the run directory: by which id each tracker knows the run, so that a resumed run goes on in the same one."""
_PROJECT = "jaxlm"


class Backend(ABC):
    """One run as a tracker knows it."""

    id: str
    """By which the tracker finds the run again."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers such as `train/loss`."""

    @abstractmethod
    def log_texts(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Logs texts that a model wrote: {"prompt", "text"} each, and `reference` where there is one."""

    @abstractmethod
    def finish(self, summary: Mapping[str, float], status: str) -> None:
        """Ends the run there.

        Args:
          summary: the final scores; {} where there are none.
          status: finished, or failed: interrupted, or ended by an error.
        """


Open = Callable[[str, str, str | None, Mapping[str, Any], Path], Backend]
"""(project, name, id of a run to go on with, config by dotted keys, run directory) -> the run."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"logging.trackers: {name} is not installed; pip install 'jaxlm[{name}]'")


def open_trackers(names: Sequence[str], run_dir: Path, project: str | None, config: Mapping[str, Any]) -> Trackers:
    """Opens a run in each tracker, or goes on with the one whose id the run directory holds.

    Args:
      project: where the run is listed; None: what the tracker's own environment variable says, else jaxlm.
      config: by dotted keys.
    Raises:
      UserError: a tracker cannot be opened when a run begins; one that cannot be when it goes on is left out.
    """
    path = run_dir / IDS
    ids: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        ids = dict(json.loads(path.read_text(encoding="utf-8")))
    several = (run_dir.parent / CONFIG).is_file()  # seeds or folds of one config
    title = f"{run_dir.parent.name}-{run_dir.name}" if several else run_dir.name
    opened: dict[str, Backend] = {}
    for name in names:
        listed = project or os.environ.get(_ENVIRONMENT[name]) or _PROJECT
        try:
            with _stdout_to_stderr():
                opened[name] = _BACKENDS[name](listed, title, ids.get(name), config, run_dir)
        except Exception as error:  # whatever a stranger's package raises
            problem = f"logging.trackers: {name} cannot be opened ({_said(error)}); {_ADVICE[name]}"
            if name not in ids:
                raise UserError(problem) from error
            log.warning("%s; the run goes on without it", problem)
    if opened:
        new = {name: backend.id for name, backend in opened.items()}
        path.write_text(json.dumps({**ids, **new}, indent=2) + "\n", encoding="utf-8")
    return Trackers(opened)


class Trackers:
    """The trackers of a run. One that fails is named once in the log and hears no more; the run goes on."""

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self._backends = dict(backends)
        self._summary: dict[str, float] = {}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda backend: backend.log(step, values))

    def log_texts(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        self._each(lambda backend: backend.log_texts(step, samples))

    def set_summary(self, summary: Mapping[str, float]) -> None:
        """Keeps the final scores for `finish`; a run that has them is finished."""
        self._summary = dict(summary)

    def finish(self) -> None:
        """Ends the run in each of them; a second call does nothing."""
        status = "finished" if self._summary else "failed"
        self._each(lambda backend: backend.finish(self._summary, status))
        self._backends.clear()

    def _each(self, tell: Callable[[Backend], None]) -> None:
        for name, backend in list(self._backends.items()):
            try:
                with _stdout_to_stderr():
                    tell(backend)
            except Exception as error:  # a run does not end because a tracker does
                del self._backends[name]
                log.warning("logging.trackers: %s failed (%s); the run goes on without it", name, _said(error))


@contextlib.contextmanager
def _stdout_to_stderr() -> Generator[None]:
    """Standard output holds a command's answer alone; trackers print on it."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


class _Wandb(Backend):
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in the run directory."""

    def __init__(self, project: str, name: str, run_id: str | None, config: Mapping[str, Any], run_dir: Path) -> None:
        wandb = self._wandb = import_module("wandb")
        self._run = wandb.init(
            project=project,
            name=name,
            id=run_id,
            resume="allow" if run_id else None,
            config=dict(config),
            dir=str(run_dir),
            settings=wandb.Settings(console="off", silent=True),
        )
        self.id = str(self._run.id)
        # Its own counter of steps refuses those that a resumed run logs again.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def log_texts(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        self._run.log({"samples": self._wandb.Table(**_table(samples)), "step": step})

    def finish(self, summary: Mapping[str, float], status: str) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if status == "finished" else 1)


class _Mlflow(Backend):
    """A run of MLflow, where MLFLOW_TRACKING_URI says: a server, or a folder or database on this machine."""

    def __init__(self, project: str, name: str, run_id: str | None, config: Mapping[str, Any], run_dir: Path) -> None:
        entities = import_module("mlflow.entities")
        self._metric = entities.Metric
        self._client = client = import_module("mlflow").MlflowClient()
        if run_id is not None:
            client.update_run(run_id, status="RUNNING")
            self.id = run_id
            return
        found = client.get_experiment_by_name(project)
        experiment = client.create_experiment(project) if found is None else found.experiment_id
        self.id = str(client.create_run(experiment, run_name=name).info.run_id)
        params = [entities.Param(key, str(value)[:_LONGEST]) for key, value in config.items()]
        for i in range(0, len(params), _AT_ONCE):
            client.log_batch(self.id, params=params[i : i + _AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self.id, metrics=[self._metric(k, v, now, step) for k, v in values.items()])

    def log_texts(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(dict(sample), ensure_ascii=False, default=str) + "\n" for sample in samples)
        self._client.log_text(self.id, lines, f"samples/{step}.jsonl")

    def finish(self, summary: Mapping[str, float], status: str) -> None:
        now = int(time.time() * 1000)
        if summary:
            self._client.log_batch(self.id, metrics=[self._metric(k, v, now, 0) for k, v in summary.items()])
        self._client.set_terminated(self.id, "FINISHED" if status == "finished" else "FAILED")


_LONGEST = 500
"""Characters of a parameter that every kind of MLflow's stores takes."""
_AT_ONCE = 100
"""Parameters that MLflow takes in one call."""


class _Trackio(Backend):
    """A run of trackio, which keeps it on this machine unless TRACKIO_SPACE_ID names a Space of the hub."""

    def __init__(self, project: str, name: str, run_id: str | None, config: Mapping[str, Any], run_dir: Path) -> None:
        trackio = self._trackio = import_module("trackio")
        self.id = run_id or f"{name}-{int(time.time())}"
        resume = "allow" if run_id else "never"
        trackio.init(project=project, name=self.id, config=dict(config), resume=resume)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def log_texts(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        self._trackio.log({"samples": self._trackio.Table(**_table(samples))}, step=step)

    def finish(self, summary: Mapping[str, float], status: str) -> None:
        if summary:
            self._trackio.log(dict(summary))
        self._trackio.finish()


def _table(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Texts as both tables take them."""
    columns = [name for name in ("prompt", "text", "reference") if any(name in sample for sample in samples)]
    return {"columns": columns, "data": [[str(sample.get(name, "")) for name in columns] for sample in samples]}


_BACKENDS: dict[str, Open] = {"wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio}
_ENVIRONMENT = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME", "trackio": "TRACKIO_PROJECT"}
_ADVICE = {
    "wandb": "log in with 'wandb login', or set WANDB_MODE=offline",
    "mlflow": "MLFLOW_TRACKING_URI says where runs are kept, such as sqlite:///mlflow.db",
    "trackio": "take it out of logging.trackers, or give its TRACKIO_DIR",
}
