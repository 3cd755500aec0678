"""Checkpoints: save, rank, verify and restore the training state, over Orbax's CheckpointManager.

What Orbax leaves to its caller is done here:

- every committed step holds a `manifest.json` with the size and SHA-256 of each data file. Orbax reads a flipped bit
  without a word; here a damaged step is named, and the next older sound one is restored. The manifest is written
  into the temporary directory just before Orbax renames it, so that no crash leaves a step without one;
- shapes, dtypes and tree paths are compared before a restore, which would cast silently;
- a step that is not above the newest one is an error, where Orbax returns False;
- a failed save is reported as `RunFailure`, and what it left behind is removed;
- metrics that are not finite never rank.

One writer per directory: hold `rundir.RunDir.lock` while a `Checkpointer` is open. With several processes, all call
every method alike on a shared file system.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from jaxlm.errors import Interrupted, RunFailure, UserError
from jaxlm.files import free_space
from jaxlm.parallel import processes
from jaxlm.training import manifest

_NONE = -1
_log = logging.getLogger(__name__)


class Checkpointer:
    """The checkpoints of one run: asynchronous saves, the newest and the best `keep` retained.

    Opening it removes what a killed or failed save left behind.

    Args:
      directory: made if absent; one sub-directory per step.
      keep: best checkpoints kept beside the newest; without a metric, older ones kept beside it.
      metric: key of `save`'s metrics that ranks; None: nothing ranks.
      higher_is_better: whether the best is the greatest.

    Raises:
      RunFailure: the directory cannot be made or cleaned.
    """

    def __init__(self, directory: Path, *, keep: int, metric: str | None, higher_is_better: bool = True) -> None:
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._metric = metric
        self._sign = 1.0 if higher_is_better else -1.0
        self._saving: dict[str, Any] | None = None  # record of the step that is being written
        self._damaged: list[int] = []
        if jax.process_index() == 0:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._remove_temporary()
                self._remove_incomplete()
            except OSError as error:
                raise RunFailure(f"{self._directory}: cannot open the checkpoints: {error}") from error
        logging.getLogger("absl").addFilter(_demote_orbax)
        # The constructor is a barrier: no process lists the steps before the first has cleaned up.
        self._manager = _Manager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Retention(self),
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
            ),
        )

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and processes.is_multiprocess() and not isinstance(error, Interrupted):
            return  # a save cannot be waited for without the others; this process ends without more ado
        try:
            self.close()
        except RunFailure as failure:
            if error is None:
                raise
            _log.error("%s", failure)  # and let the first error through

    def save(
        self,
        step: int,
        state: PyTree,
        extra: dict[str, Any],
        metrics: dict[str, float] | None = None,
        *,
        wait: bool = False,
    ) -> None:
        """Starts to save; returns once `state` has been copied, so that its buffers may be donated.

        Args:
          step: above every step saved before.
          state: arrays of any shape, dtype and sharding, in any containers.
          extra: JSON values, the same on every process; keys come back as strings, tuples as lists.
          metrics: those that are not finite are left out.
          wait: return only when the step is committed.

        Raises:
          RunFailure: this save, or the one before it, failed; earlier checkpoints are intact.
          ValueError: the step is not above the newest.
        """
        self.wait()
        newest = self.latest_step()
        if newest is not None and step <= newest:
            raise ValueError(f"{self._directory}: cannot save step {step}: step {newest} is there already")
        finite = {name: float(value) for name, value in (metrics or {}).items() if math.isfinite(value)}
        if dropped := sorted(set(metrics or {}) - set(finite)):
            _log.warning("step %d: %s not finite; such a checkpoint never ranks as best", step, ", ".join(dropped))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        record = {"step": step, "metrics": finite, "extra": extra, "leaves": manifest.leaf_table(state), "bytes": size}
        self._saving = json.loads(json.dumps(record))  # a snapshot: the caller's dict may change meanwhile
        try:
            if jax.process_index() == 0:
                self._remove_temporary()
            for damaged in self._damaged:
                self._manager.delete(damaged)
            self._damaged = []
            if not self._manager.save(step, args=ocp.args.StandardSave(state)):
                raise RuntimeError("Orbax declined to save it")
        except Exception as error:
            raise self._failure(error) from error
        if wait:
            self.wait()

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[int, PyTree, dict[str, Any]]:
        """Reads a verified checkpoint onto the shardings of `abstract_state`, whatever mesh it was saved from.

        Args:
          abstract_state: `jax.ShapeDtypeStruct` leaves with shardings.
          step: one of `all_steps()`; None: the newest that is sound. Damaged ones above it are named in the log
            and removed at the next save.

        Returns:
          (step, state, extra).

        Raises:
          UserError: there is no such step, or its tree, shapes or dtypes are not those of `abstract_state`.
          RunFailure: the step, or every step, is damaged.
        """
        self.wait()
        steps = self.all_steps()
        if not steps or (step is not None and step not in steps):
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise UserError(f"{self._directory}: no {wanted}; found steps: {', '.join(map(str, steps)) or 'none'}")
        candidates = [step] if step is not None else steps[::-1]
        chosen = self._first_sound(candidates) if jax.process_index() == 0 else _NONE
        if jax.process_count() > 1:
            chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        if chosen == _NONE:
            raise RunFailure(
                f"{self._directory}: no sound checkpoint: damaged: {', '.join(f'step {s}' for s in candidates)}. "
                "Bring the directory back from a copy, or start over with train.restart=true"
            )
        if step is None:
            self._damaged = sorted(s for s in steps if s > chosen)
        folder = self._directory / str(chosen)
        record = manifest.read(folder)
        manifest.compare(folder, record["leaves"], manifest.leaf_table(abstract_state))
        state = self._manager.restore(chosen, args=ocp.args.StandardRestore(abstract_state))
        return chosen, state, record["extra"]

    def latest_step(self) -> int | None:
        """The newest committed step."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """The committed step of the best metric (of equals, the earliest); None without a ranked one."""
        scores = self._scores()
        return min(scores, key=lambda step: (-scores[step], step), default=None)

    def all_steps(self) -> list[int]:
        """Committed steps, ascending; neither the one being written nor those that a restore found damaged."""
        steps = [step for step in _step_directories(self._directory) if step not in self._damaged]
        return [step for step in steps if (self._directory / str(step) / manifest.FILE).is_file()]

    def metrics(self, step: int) -> dict[str, float]:
        """The finite metrics saved with a committed step."""
        return manifest.read(self._directory / str(step))["metrics"]

    def wait(self) -> None:
        """Blocks until the running save is committed; raises RunFailure if it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error
        self._saving = None

    def close(self) -> None:
        """Waits for the running save and frees the threads; raises RunFailure if the save failed."""
        try:
            self.wait()
        finally:
            self._manager.close()
            logging.getLogger("absl").removeFilter(_demote_orbax)

    def _write_manifest(self) -> None:
        """Called by Orbax, on the first process, when all data are written and the rename is next."""
        assert self._saving is not None
        [folder] = self._directory.glob(f"{self._saving['step']}{ocp.utils.TMP_DIR_SUFFIX}*")
        manifest.write(folder, self._saving)

    def _failure(self, error: Exception) -> RunFailure:
        """Cleans up after a failed save, and describes it."""
        if (lost := processes.lost_peer(error)) is not None:
            return lost
        saving = self._saving or {"step": "?", "bytes": 0}
        self._saving = None
        if jax.process_index() == 0:
            self._remove_temporary()
        self._manager.reload()  # it has dropped the older steps that the failed one would have replaced
        newest = self.latest_step()
        kept = "there is no earlier checkpoint" if newest is None else f"the checkpoint of step {newest} is intact"
        reason = " ".join(str(error).split()) or type(error).__name__
        if len(reason) > 400:
            reason = f"{reason[:100]} ... {reason[-300:]}"  # TensorStore names the cause at either end
        return RunFailure(
            f"{self._directory}: saving step {saving['step']} failed: {reason}. "
            f"It needs up to {saving['bytes']:,} bytes ({free_space(self._directory)}); {kept}"
        )

    def _remove_temporary(self) -> None:
        """Removes what an interrupted save wrote: Orbax would refuse the same step because of it.

        Right after a failure other writes may still be under way, and leave some for the next call.
        """
        for path in self._directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _remove_incomplete(self) -> None:
        """Removes half-deleted steps; if no step is complete, moves them out of Orbax's sight instead."""
        steps = _step_directories(self._directory)
        incomplete = [step for step in steps if not manifest.is_complete(self._directory / str(step))]
        for step in incomplete:
            path = self._directory / str(step)
            if len(incomplete) < len(steps):
                _log.warning("%s: incomplete checkpoint removed", path)
                shutil.rmtree(path)
            else:
                aside = path.with_name(f"incomplete-{step}")
                _log.warning("%s: incomplete checkpoint, moved to %s", path, aside.name)
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)

    def _first_sound(self, steps: Sequence[int]) -> int:
        for step in steps:
            if (problem := manifest.problem(self._directory / str(step))) is None:
                return step
            _log.warning("%s: damaged checkpoint: %s", self._directory / str(step), problem)
        return _NONE

    def _scores(self) -> dict[int, float]:
        """Rank of each committed step that has one; greater is better."""
        if self._metric is None:
            return {}
        scores = {}
        for step in self.all_steps():
            try:
                scores[step] = self._sign * self.metrics(step)[self._metric]
            except (OSError, ValueError, KeyError):  # being deleted, damaged, or saved without the metric
                continue
        return scores

    def _retained(self, steps: Sequence[int]) -> set[int]:
        """Which of the steps, the one being written included, stay after its commit."""
        if self._metric is None:
            return set(sorted(steps)[-1 - self._keep :])
        scores = self._scores()
        if self._saving is not None and self._metric in self._saving["metrics"]:
            scores[self._saving["step"]] = self._sign * self._saving["metrics"][self._metric]
        best = sorted(scores, key=lambda step: (-scores[step], step))[: self._keep]
        return {max(steps), *best}


class _Manager(ocp.CheckpointManager):
    """Leaves signals to the train loop, which counts steps in a way of its own for them."""

    def reached_preemption(self, step: int) -> bool:
        return False


class _Retention(ocp.checkpoint_managers.PreservationPolicy):
    """Asks the Checkpointer; Orbax deletes the others once the new step is committed."""

    def __init__(self, owner: Checkpointer) -> None:
        self._owner = owner

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        retained = self._owner._retained([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in retained for checkpoint in checkpoints]


def _demote_orbax(record: logging.LogRecord) -> bool:
    """Logging filter: Orbax's log, tracebacks of failed saves included, is detail beside this module's messages."""
    if "orbax" not in record.pathname:
        return True
    _log.debug("orbax: %s", record.getMessage())
    return False


def _step_directories(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal() and path.is_dir())
