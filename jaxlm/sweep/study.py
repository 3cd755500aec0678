"""The study of a sweep: Optuna's file of trials, which several processes share, and the next trial to be run."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.files import lock_file
from jaxlm.sweep.space import Range, Space

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("jaxlm")

JOURNAL = "study.journal"
"""Optuna's file."""
_WAIT = 0.2


class _Busy(Exception):
    """Another process holds the lock."""


class Chosen(NamedTuple):
    """A trial to be run, and the values that it is run with, by key."""

    trial: optuna.Trial
    values: dict[str, Any]


class Study:
    """Trials of one sweep.

    What is read and then written happens under a lock of the sweep's directory; whoever runs a trial holds a lock of
    its own, so that a trial whose process died is known by its lock being free, and is taken up again.

    Args:
      directory: of the sweep; it exists.
      seed: of the sampler: trial N depends on it and on the trials before.
      pruning: whether trials end early.
    """

    def __init__(self, directory: Path, space: Space, *, seed: int, pruning: bool) -> None:
        self._optuna = optuna = import_optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.directory, self.space, self._seed = directory, space, seed
        path = str(directory / JOURNAL)
        storage = JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
        self.study = optuna.create_study(
            study_name="sweep",
            storage=storage,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner() if pruning else optuna.pruners.NopPruner(),
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps the other processes from choosing trials and from writing results."""
        with _lock(self.directory / "sweep.lock", wait=True):
            yield

    @property
    def states(self) -> type[optuna.trial.TrialState]:
        """What a trial can be."""
        return self._optuna.trial.TrialState

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All of them, in order."""
        return self.study.get_trials(deepcopy=False)

    def next(self, total: int, held: ExitStack) -> Chosen | None:
        """Returns the trial that this process runs next; None where there are `total`.

        A trial that was begun by a process that is gone comes first.

        Args:
          held: keeps the trial's lock.
        """
        with self.locked():
            running = self._optuna.trial.TrialState.RUNNING
            for frozen in self.trials:
                if frozen.state == running and self._take(frozen.number, held):
                    log.info("trial %d was begun and is taken up again", frozen.number)
                    return self._values(self._optuna.Trial(self.study, frozen._trial_id))
            if len(self.trials) >= total:
                return None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
                # By the trial's number, so that neither a resumption nor a second process draws the same again.
                seed = self._seed * 1_000_003 + len(self.trials)
                self.study.sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            trial = self.study.ask()
            assert self._take(trial.number, held)
            return self._values(trial)

    def _take(self, number: int, held: ExitStack) -> bool:
        try:
            held.enter_context(_lock(self.directory / f"trial-{number}.lock", wait=False))
        except _Busy:
            return False
        return True

    def _values(self, trial: optuna.Trial) -> Chosen:
        """The values of a trial; those of one that was begun are the same again."""
        values: dict[str, Any] = {}
        for key, choice in self.space.items():
            if not isinstance(choice, Range):
                values[key] = json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in choice]))
            elif choice.whole:
                step = int(choice.step or 1)
                values[key] = trial.suggest_int(key, int(choice.low), int(choice.high), step=step, log=choice.log)
            else:
                values[key] = trial.suggest_float(key, choice.low, choice.high, step=choice.step, log=choice.log)
        return Chosen(trial, values)


def import_optuna() -> Any:
    """Returns Optuna, which is an extra.

    Raises:
      UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("jaxlm sweep needs Optuna: pip install 'jaxlm[sweep]' (or pip install optuna)") from error
    return optuna


@contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[None]:
    def busy(_process: str) -> None:
        if not wait:
            raise _Busy
        time.sleep(_WAIT)

    with lock_file(path, on_busy=busy, without_locks="let one process work on the sweep at a time"):
        yield
