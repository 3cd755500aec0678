"""The config sections `train`, `checkpoint` and `logging`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxlm.local_paths import LocalPath
from jaxlm.section import Section


class EarlyStoppingConfig(Section):
    """Ends a run that has stopped improving."""

    patience: int = Field(default=3, gt=0)
    """Evaluations in a row without improvement before the run ends."""
    min_delta: float = Field(default=0.0, ge=0)
    """What the metric must gain to count as an improvement."""


class TrainConfig(Section):
    """The training loop."""

    batch_size: int = Field(default=32, gt=0)
    """Examples per optimizer step, exactly, packed or not; in pretraining, rows of `data.max_length` tokens."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """Instead of `batch_size`: packed rows of about this many tokens per step, however many examples they hold."""
    grad_accum_steps: int = Field(default=1, gt=0)
    """Micro-batches one step is computed in; does not change the result."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training rows; absent: 3, unless `steps` is given."""
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps, instead of `epochs`."""
    eval_every: Annotated[int, Field(gt=0)] | Literal["epoch"] = "epoch"
    """Steps between evaluations on the validation rows."""
    metric: str | None = None
    """What best checkpoint and early stopping go by; absent: the task's own."""
    early_stopping: EarlyStoppingConfig | None = None
    """Absent: the run goes its full length."""
    unfreeze_every: int | None = Field(default=None, gt=0)
    """Gradual unfreezing: the head alone for so many steps, then the top layer too, then one layer more each time, the
    embeddings last. Absent: all from the first step."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a running average of the parameters, for instance 0.999, which is what is evaluated, exported and chosen
    as best; absent: none."""
    r_drop: float | None = Field(default=None, gt=0)
    """Weight of R-Drop: the divergence between two passes of different dropout; classification and tagging."""
    mixup: float | None = Field(default=None, gt=0)
    """Mixup of classified texts before the head: shares are drawn from Beta(mixup, mixup)."""
    fgm: float | None = Field(default=None, gt=0)
    """Adversarial training: how far the token embeddings are moved, all together, to where the loss is worst."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over the classes."""
    hang_factor: float | None = Field(default=100.0, gt=1)
    """A step that takes this many times the median of the last ones, and over a minute, ends the run on every process,
    with the stacks of all threads; steps that compile may take any time. null: never."""
    seeds: int | None = Field(default=None, ge=2)
    """Repeat the run with so many seeds, from `seed` on, each as run seed-N in the run's directory; one summary and
    report over all of them, with mean and standard deviation."""
    folds: int | None = Field(default=None, ge=2)
    """Cross-validation: so many runs, each as fold-N in the run's directory, that hold out one fold of the training
    rows each as their validation rows; with out-of-fold predictions."""
    scratch_baseline: bool = False
    """Also train the same network from random parameters, as run NAME-scratch, and print its scores beside."""
    restart: bool = False
    """Start over: the run directory of the same name is moved aside."""

    @model_validator(mode="after")
    def _repeats(self) -> TrainConfig:
        if self.seeds is not None and self.folds is not None:
            raise ValueError("expected seeds or folds, not both; set the other to null")
        if (self.seeds or self.folds) and self.scratch_baseline:
            raise ValueError(
                "scratch_baseline: not with seeds or folds; repeat the run from random parameters by itself"
            )
        return self

    @model_validator(mode="after")
    def _one_mixture(self) -> TrainConfig:
        if self.r_drop is not None and self.mixup is not None:
            raise ValueError("expected r_drop or mixup, not both: two passes would be mixed with other partners")
        return self

    @model_validator(mode="after")
    def _length(self) -> TrainConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                "expected steps or epochs, not both; set the other to null (train.epochs=null or train.steps=null)"
            )
        return self


class CheckpointConfig(Section):
    """When the state of a run is saved."""

    every: int | None = Field(default=None, gt=0)
    """Steps between checkpoints; absent: at each evaluation. The best and the last are always saved."""
    keep: int = Field(default=1, gt=0)
    """Best checkpoints kept, beside the newest."""


class LoggingConfig(Section):
    """Where progress is written."""

    every: int = Field(default=10, gt=0)
    """Steps between log lines."""
    directory: LocalPath = "runs"
    """Run directories are made here, by `name`."""
    tensorboard: bool = True
    """Write TensorBoard event files beside `metrics.jsonl`."""
    compile_cache: LocalPath | None = "auto"
    """Folder where JAX keeps compiled programs, so that the same step is compiled once; `auto`: `~/.cache/jaxlm/xla`
    (in `$XDG_CACHE_HOME` where that is set), at most 8 GiB; null: none. JAX_COMPILATION_CACHE_DIR comes first."""
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()
    """Experiment trackers that hear of the same numbers and texts; each is an extra (docs/guides/trackers.md)."""
    project: str | None = Field(default=None, min_length=1)
    """Where trackers list the run (mlflow: its experiment); absent: as WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME or
    TRACKIO_PROJECT says, else `jaxlm`."""
