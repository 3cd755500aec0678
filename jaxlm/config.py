"""The config schema: every key a user may write, its type, range and default. `configfile` reads it from YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Section(BaseModel):
    """Frozen, and closed to unknown keys; the string under a field is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )


class TokenizerTrainingConfig(_Section):
    """A WordPiece vocabulary learned from the training texts, before the model is made."""

    vocab_size: int = Field(default=8000, gt=5)
    """Entries at most, the five special tokens included."""
    lowercase: bool = True
    """Fold case and strip accents."""
    min_frequency: int = Field(default=2, gt=0)
    """Pairs seen less often are not merged."""


class ModelConfig(_Section):
    """What is trained, and how it is computed."""

    init: str | None = None
    """An HF-format directory, a hub id, or an earlier run's directory; absent: random, from `family` + `preset`."""
    family: str | None = None
    """Architecture of a model that starts from random weights, for instance `bert`."""
    preset: str | None = None
    """Size of that architecture, for instance `small`."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the family's own config fields, for instance `{num_layers: 4}`; only without `init`."""
    tokenizer: str | None = None
    """A tokenizer directory or hub id; absent: the one in `init`."""
    train_tokenizer: TokenizerTrainingConfig | None = None
    """Train a tokenizer on the training texts instead; for models that start from random parameters."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    new_head: bool = False
    """Initialise the task head afresh even where the checkpoint has one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters, softmax, norms and loss stay float32."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Overrides the checkpoint's hidden dropout."""
    attention_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Overrides the checkpoint's dropout of attention probabilities."""
    classifier_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Overrides the checkpoint's dropout before the task head."""
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    """Attention kernel; `auto`: cuDNN where the device, dtype and shapes allow it, else XLA."""
    remat: Literal["none", "full", "dots"] = "none"
    """Activations recomputed in the backward pass: none, all of a layer, or all but its matrix products."""
    unroll: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    """Layers unrolled per scan step; `auto`: all of them on a CPU (faster steps), one elsewhere (faster compiles)."""

    @model_validator(mode="after")
    def _random_or_given(self) -> ModelConfig:
        given = [k for k in ("preset", "config") if getattr(self, k)]
        if self.init is not None and given:
            raise ValueError(f"{' and '.join(given)}: only for random weights, without init")
        return self


class TaskConfig(_Section):
    """The columns of a row and what is predicted from them."""

    kind: Literal["classification"] = "classification"
    """What is predicted: one label, several, or a number for each text."""
    text: str | tuple[str, str] = "text"
    """Text column, or the two columns of a pair."""
    label: str = "label"
    """Label column."""
    problem: Literal["auto", "binary", "multiclass", "multilabel", "regression"] = "auto"
    """Kind of target, and so the loss; `auto`: taken from the training labels."""
    labels: tuple[str, ...] | None = None
    """Label names in id order; absent: the checkpoint's, else the sorted labels of the training rows."""
    label_separator: str | None = None
    """For multi-label columns of one string: what stands between the labels. jsonl and parquet may hold lists."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Multi-label: a label is predicted at or above this probability."""
    baselines: bool = False
    """Also score a majority baseline and TF-IDF with logistic regression on the test (else validation) rows."""


class SourceConfig(_Section):
    """Where one split comes from: exactly one of `path`, `rows`, `tfds`, `builtin`."""

    path: str | None = None
    """A file, relative to where the command runs."""
    rows: tuple[dict[str, Any], ...] | None = None
    """The rows themselves, each a mapping of column names to values."""
    tfds: str | None = None
    """A TensorFlow Datasets name such as `glue/sst2`, prepared as ArrayRecord."""
    builtin: Literal["stdlib_docstrings"] | None = None
    """A data set made on the machine: docstrings of the Python standard library, labelled by topic."""
    split: str | None = None
    """TFDS or built-in split; absent: the name of the key it stands under."""
    data_dir: str | None = None
    """TFDS directory; absent: TFDS's own default."""
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet"] = "auto"
    """Format of the file at `path`; `auto`: by its suffix."""
    columns: tuple[str, ...] | None = None
    """Column names of a csv or tsv file that has no header line; absent: the first line is the header."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Column mapping, file's name -> name used by the task."""
    quoting: bool | Literal["auto"] = "auto"
    """csv/tsv quotes; `auto`: on for csv, off for tsv."""
    encoding: str = "utf-8"
    """Text encoding of the file, by the name Python knows it under."""
    limit: int | None = Field(default=None, gt=0)
    """Only the first rows."""

    @model_validator(mode="after")
    def _one_source(self) -> SourceConfig:
        given = [k for k in ("path", "rows", "tfds", "builtin") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of path, rows, tfds, builtin; found {', '.join(given) or 'none'}")
        return self


class CleanConfig(_Section):
    """Text preprocessing; each action is counted in the log."""

    unicode: Literal["none", "NFC", "NFKC"] = "none"
    """Unicode normal form."""
    control_characters: bool = False
    """Remove control and zero-width characters (tab and line feed stay)."""
    whitespace: bool = False
    """Fold runs of white space into one space and strip the ends."""
    deduplicate: bool = False
    """Drop training rows whose texts occurred earlier in the training rows."""
    leaks: Literal["ignore", "warn", "drop"] = "warn"
    """Training rows whose texts stand in validation or test."""


class DataConfig(_Section):
    """The rows, and how they become batches."""

    train: SourceConfig | None = None
    """Training rows."""
    validation: SourceConfig | None = None
    """Rows of the evaluations during training, which choose the best checkpoint."""
    test: SourceConfig | None = None
    """Rows that the best checkpoint is scored on at the end."""
    max_length: int = Field(default=128, gt=0)
    """Longest example in tokens, special tokens included."""
    long_text: Literal["truncate", "window"] = "truncate"
    """What becomes of a longer text: cut at the end, or read in overlapping windows whose outputs are averaged."""
    stride: int = Field(default=32, ge=0)
    """Tokens shared by neighbouring windows."""
    packing: bool = True
    """Several examples to a row, kept apart by segment masks; false: one to a row, padded."""
    row_length: int | None = Field(default=None, gt=0)
    """Packed row length; absent: the multiple of 8, from the longest example to `max_length`, that wastes least."""
    max_shapes: int = Field(default=4, gt=0)
    """Most distinct batch shapes, hence compilations, of the training loader."""
    eval_rows: int | None = Field(default=None, gt=0)
    """Rows of an evaluation batch; absent: as many as give about 4,096 tokens."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that cannot be used stops the run, or is skipped and counted."""
    clean: CleanConfig = CleanConfig()
    """Text preprocessing."""

    @model_validator(mode="after")
    def _windows_advance(self) -> DataConfig:
        if self.long_text == "window" and self.stride >= self.max_length:
            raise ValueError(f"expected stride below max_length ({self.max_length}), found {self.stride}")
        return self


class OptimizerConfig(_Section):
    """How gradients change the parameters."""

    name: Literal["adamw"] = "adamw"
    """Update rule."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak, reached at the end of the warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled; not applied to biases and norm scales."""
    b1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's mean of gradients."""
    b2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of Adam's mean of squared gradients."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to Adam's denominator."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after the warm-up, to the last step."""
    warmup: float = Field(default=0.0, ge=0)
    """Below 1: a fraction of all steps; from 1 on: steps."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Where linear and cosine end, as a fraction of `learning_rate`."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Global gradient norm bound; null: none."""


class EarlyStoppingConfig(_Section):
    """Ends a run that has stopped improving."""

    patience: int = Field(default=3, gt=0)
    """Evaluations in a row without improvement before the run ends."""
    min_delta: float = Field(default=0.0, ge=0)
    """What the metric must gain to count as an improvement."""


class TrainConfig(_Section):
    """The training loop."""

    batch_size: int = Field(default=32, gt=0)
    """Examples per optimizer step, exactly, packed or not."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """Instead of `batch_size`: packed rows of about this many tokens per step, however many examples they hold."""
    accumulation: int = Field(default=1, gt=0)
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
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over the classes."""
    fresh: bool = False
    """Start over: the run directory of the same name is moved aside."""

    @model_validator(mode="after")
    def _length(self) -> TrainConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("expected steps or epochs, not both")
        return self


class MeshConfig(_Section):
    """How devices share the work. Sizes multiply to the number of devices; one may be -1: the devices that are left."""

    preset: Literal["ddp", "fsdp", "fsdp_tp"] = "ddp"
    """Layout: parameters on every device, split over `fsdp`, or split over `fsdp` and `tensor`."""
    data: int | None = Field(default=None, ge=-1)
    """Replicas of the parameters; absent: -1 under ddp, else 1."""
    fsdp: int | None = Field(default=None, ge=-1)
    """Devices that share one copy of the parameters (ZeRO-3); absent: -1 under fsdp and fsdp_tp, else 1."""
    tensor: int | None = Field(default=None, ge=-1)
    """Devices that split heads and MLP columns; absent: 2 under fsdp_tp, else 1."""


class CheckpointConfig(_Section):
    """When the state of a run is saved."""

    every: int | None = Field(default=None, gt=0)
    """Steps between checkpoints; absent: at each evaluation. The best and the last are always saved."""
    keep: int = Field(default=1, gt=0)
    """Best checkpoints kept, beside the newest."""


class LoggingConfig(_Section):
    """Where progress is written."""

    every: int = Field(default=10, gt=0)
    """Steps between log lines."""
    directory: str = "runs"
    """Run directories are made here, by `name`."""
    tensorboard: bool = True
    """Write TensorBoard event files beside `metrics.jsonl`."""


class Config(_Section):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its directory: letters, digits, `.`, `_` and `-`."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of initialisation, dropout and the order of the rows."""
    model: ModelConfig = ModelConfig()
    """What is trained, and how it is computed."""
    task: TaskConfig = TaskConfig()
    """The columns of a row, and what is predicted from them."""
    data: DataConfig = DataConfig()
    """The rows, and how they become batches."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How gradients change the parameters."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    mesh: MeshConfig = MeshConfig()
    """How devices share the work."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state of a run is saved."""
    logging: LoggingConfig = LoggingConfig()
    """Where progress is written."""
