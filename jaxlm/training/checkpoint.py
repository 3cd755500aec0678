"""Checkpoints: saves, ranks, verifies and restores the training state with Orbax's CheckpointManager.

This module adds what Orbax leaves to its caller:

- every committed step holds a `manifest.json` with the size and SHA-256 of each data file. Orbax reads a flipped bit
  silently; here the damaged step is named, and the newest sound one before it is restored. Each process hashes what
  it wrote (`digests`). The manifest is written into the temporary folder just before Orbax renames it, so that no
  crash leaves a step without one;
- shapes, dtypes and tree paths are compared before a restore, because Orbax would cast silently;
- saving a step that is not above the newest one is an error, where Orbax returns False;
- a failed save is reported as `RunFailure`, and what it left behind is removed;
- a metric that is not finite never makes a checkpoint the best.

A directory has one writer: hold `RunDir.lock` while a `Checkpointer` is open. With several processes, all call every
method alike, on a shared file system.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxlm.errors import Interrupted, RunFailure, UserError
from jaxlm.files import free_space
from jaxlm.metrics.best import rank
from jaxlm.parallel import processes
from jaxlm.training import digests, manifest, orbax_noise, step_folders

_NONE = -1
_log = logging.getLogger(__name__)


class Checkpointer:
    """The checkpoints of one run, saved asynchronously; keeps the newest and the best `keep`.

    Opening it removes what a killed or failed save left behind.

    Args:
      directory: made if absent; it gets a folder for each step.
      keep: how many of the best checkpoints are kept beside the newest; without a metric, how many of the older ones.
      metric: the key of `save`'s metrics that ranks checkpoints; None: nothing ranks them.
      higher_is_better: whether the greatest value is the best.

    Raises:
      RunFailure: the directory cannot be made or cleaned.
    """

    def __init__(self, directory: Path, *, keep: int, metric: str | None, higher_is_better: bool = True) -> None:
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._metric = metric
        self._higher_is_better = higher_is_better
        self._saving: dict[str, Any] | None = None  # record of the step that is being written
        self._damaged: list[int] = []
        self._failed = False
        if jax.process_index() == 0:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                step_folders.remove_temporary(self._directory)
                step_folders.remove_incomplete(self._directory)
            except OSError as error:
                raise RunFailure(f"{self._directory}: cannot open the checkpoints: {error}") from error
        orbax_noise.hold_back()
        # The constructor is a barrier: no process lists the steps before the first has cleaned up.
        self._manager = _Manager(
            self._directory,
            item_handlers=digests.Handler(),
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
        state: Any,
        extra: dict[str, Any],
        metrics: dict[str, float] | None = None,
        *,
        wait: bool = False,
    ) -> None:
        """Starts a save; returns when `state` has been copied, so that its buffers may be donated.

        Args:
          step: greater than every step saved before.
          state: arrays of any shape, dtype and sharding, in any containers.
          extra: JSON values, the same on every process; keys come back as strings, tuples as lists.
          metrics: scores of this step; values that are not finite are left out.
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
        self._failed = False
        self._saving = json.loads(json.dumps(record))  # a snapshot: the caller's dict may change meanwhile
        try:
            if jax.process_index() == 0:
                step_folders.remove_temporary(self._directory)
            for damaged in self._damaged:
                self._manager.delete(damaged)
            self._damaged = []
            if not self._manager.save(step, args=digests.Save(state)):
                raise RuntimeError("Orbax declined to save it")
        except Exception as error:
            raise self._failure(error) from error
        if wait:
            self.wait()

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]]:
        """Restores a verified checkpoint with the shardings of `abstract_state`; it may come from another mesh.

        Args:
          abstract_state: `jax.ShapeDtypeStruct` leaves with shardings.
          step: one of `all_steps()`; None: the newest that is sound. Damaged ones after it are named in the log
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
        found = step_folders.first_sound(self._directory, candidates) if jax.process_index() == 0 else None
        chosen = _NONE if found is None else found
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
        state = self._manager.restore(chosen, args=digests.Restore(abstract_state))
        return chosen, state, record["extra"]

    def latest_step(self) -> int | None:
        """Returns the newest committed step; None if there is none."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the committed step with the best metric, the earliest of equals; None if no step is ranked."""
        return next(iter(_best_first(self._ranks())), None)

    def best_sound_step(self, in_memory: int) -> int | None:
        """Returns the best of the ranked steps whose files are sound; damaged ones are named in the log, and removed at
        the next save.

        Args:
          in_memory: a step whose state is at hand, so that its files do not matter.
        """

        def find() -> list[Any]:
            damaged = [step for step in self.all_steps() if manifest.is_damaged(self._directory / str(step))]
            step_folders.first_sound(self._directory, damaged)  # which says what is wrong
            for step in _best_first({s: r for s, r in self._ranks().items() if s not in damaged}):
                if step == in_memory or step_folders.first_sound(self._directory, [step]) is not None:
                    return [step, damaged]
                damaged.append(step)
            return [None, damaged]

        found, damaged = processes.broadcast_from_first(find)
        self._damaged += damaged
        return found

    def all_steps(self) -> list[int]:
        """Returns the committed steps, ascending, without those that were found damaged."""
        return [step for step in step_folders.committed_steps(self._directory) if step not in self._damaged]

    def metrics(self, step: int) -> dict[str, float]:
        """Returns the finite metrics saved with a committed step."""
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
            try:
                self._manager.close()
            except Exception as error:
                if not self._failed:  # else it tells of the failed save again, in a form of its own
                    raise RunFailure(f"{self._directory}: closing the checkpoints failed: {error}") from error
            finally:
                orbax_noise.release()

    def _write_manifest(self) -> None:
        """Orbax calls this on the first process when all data are written, just before the rename."""
        assert self._saving is not None
        manifest.write(step_folders.temporary_folder(self._directory, self._saving["step"]), self._saving)

    def _failure(self, error: Exception) -> RunFailure:
        """Cleans up after a failed save; returns the error to raise."""
        if (lost := processes.lost_peer(error)) is not None:
            return lost
        saving = self._saving or {"step": "?", "bytes": 0}
        self._saving, self._failed = None, True
        if jax.process_index() == 0:
            step_folders.remove_temporary(self._directory)
        self._manager.reload()  # it has forgotten the older steps that the failed one would have replaced
        newest = self.latest_step()
        kept = "there is no earlier checkpoint" if newest is None else f"the checkpoint of step {newest} is intact"
        reason = " ".join(str(error).split()) or type(error).__name__
        if len(reason) > 400:
            reason = f"{reason[:100]} ... {reason[-300:]}"  # TensorStore names the cause at the beginning or at the end
        return RunFailure(
            f"{self._directory}: saving step {saving['step']} failed: {reason}. "
            f"It needs up to {saving['bytes']:,} bytes ({free_space(self._directory)}); {kept}"
        )

    def _ranks(self) -> dict[int, float]:
        """Returns the rank of each committed step that has one; greater is better."""
        if self._metric is None:
            return {}
        ranks = {}
        for step in self.all_steps():
            try:
                ranks[step] = self._rank(self.metrics(step)[self._metric])
            except (OSError, ValueError, KeyError):  # being deleted, damaged, or saved without the metric
                continue
        return ranks

    def _rank(self, value: float) -> float:
        return rank(value, higher_is_better=self._higher_is_better)

    def retained_steps(self, steps: Sequence[int]) -> set[int]:
        """Returns which of the steps, including the one that is being written, stay after its commit."""
        if self._metric is None:
            return set(sorted(steps)[-1 - self._keep :])
        ranks = self._ranks()
        if self._saving is not None and self._metric in self._saving["metrics"]:
            ranks[self._saving["step"]] = self._rank(self._saving["metrics"][self._metric])
        return {max(steps), *_best_first(ranks)[: self._keep]}


class _Manager(ocp.CheckpointManager):
    """A manager that leaves signals to the train loop (`processes.is_stop_step`)."""

    def reached_preemption(self, step: int) -> bool:
        return False


class _Retention(ocp.checkpoint_managers.PreservationPolicy):
    """Tells Orbax, which deletes old steps after a commit, which ones the Checkpointer retains."""

    def __init__(self, owner: Checkpointer) -> None:
        self._owner = owner

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        retained = self._owner.retained_steps([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in retained for checkpoint in checkpoints]


def _best_first(ranks: dict[int, float]) -> list[int]:
    """Returns the steps by falling rank; of equals, the earliest first."""
    return sorted(ranks, key=lambda step: (-ranks[step], step))
