"""The config schema: every key a user may write, its type, range and default. `configfile` reads it from YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jaxlm.config_data import DataConfig
from jaxlm.config_section import Section
from jaxlm.config_tasks import ClassificationConfig, TaskConfig


class TokenizerTrainingConfig(Section):
    """A vocabulary learned from the training texts, before the model is made."""

    type: Literal["wordpiece", "unigram", "bpe", "byte_bpe", "char"] = "wordpiece"
    """Kind of vocabulary: WordPiece, SentencePiece unigram or BPE, byte-level BPE, or one token to a character."""
    family: str | None = None
    """Whose special tokens it has; absent: `bert`, `t5`, `llama`, `gpt2` by type."""
    vocab_size: int = Field(default=8000, gt=5)
    """Entries at most, special tokens included; characters are all kept."""
    lowercase: bool = True
    """WordPiece: fold case and strip accents."""
    min_frequency: int = Field(default=2, gt=0)
    """WordPiece and byte-level BPE: pairs seen less often are not merged."""


class ModelConfig(Section):
    """What is trained, and how it is computed."""

    init: str | None = None
    """An HF-format directory, a hub id, an earlier run's directory, or the config of a pretraining run, which is run
    first if it has no result yet; absent: random, from `family` + `preset`."""
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
    """Overrides the checkpoint's dropout of attention probabilities. 0 is recommended on a TPU: its kernel has none."""
    classifier_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Overrides the checkpoint's dropout before the task head."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Attention kernel; `auto`: splash on a TPU and cuDNN on a GPU, where they can do what is asked, else XLA. On a
    CPU, `splash` is interpreted, very slowly."""
    remat: Literal["none", "full", "dots"] = "none"
    """Activations recomputed in the backward pass: none, all of a layer, or all but its matrix products."""
    logits_chunk: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    """Language models: tokens of a row whose logits exist at once; `auto`: all, unless that were over 2^25 numbers."""
    unroll: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    """Layers unrolled per scan step; `auto`: all of them on a CPU (faster steps), one elsewhere (faster compiles)."""

    @model_validator(mode="after")
    def _random_or_given(self) -> ModelConfig:
        given = [k for k in ("preset", "config") if getattr(self, k)]
        if self.init is not None and given:
            raise ValueError(f"{' and '.join(given)}: only for random weights, without init")
        return self


class OptimizerConfig(Section):
    """How gradients change the parameters."""

    name: Literal["adamw", "adafactor", "muon"] = "adamw"
    """Update rule (docs/optimizers.md); `muon`: of hidden matrices, AdamW for the rest."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak, reached at the end of the warm-up; `adafactor` multiplies it by each parameter's size."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled; not applied to biases and norm scales."""
    b1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's mean of gradients."""
    b2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of Adam's mean of squared gradients."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to Adam's denominator."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of Muon's mean of gradients."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """How means of gradients and of their squares are stored: bfloat16 takes half the memory; `adafactor`: float32."""
    offload: bool = False
    """Keep the optimizer's state in the host's memory, where the devices can reach it; does not change the result."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after the warm-up, to the last step."""
    warmup: float = Field(default=0.0, ge=0)
    """Below 1: a fraction of all steps; from 1 on: steps."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Where linear and cosine end, as a fraction of `learning_rate`."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Global gradient norm bound; null: none."""

    @model_validator(mode="after")
    def _used(self) -> OptimizerConfig:
        unused = {"adamw": ("momentum",), "adafactor": ("b1", "b2", "eps", "momentum", "moments"), "muon": ()}[
            self.name
        ]
        fields = type(self).model_fields
        for key in unused:
            if getattr(self, key) != fields[key].default:
                raise ValueError(f"{key}: {self.name} has none; leave it out")
        return self


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
    scratch_baseline: bool = False
    """Also train the same network from random parameters, as run NAME-scratch, and print its scores beside."""
    fresh: bool = False
    """Start over: the run directory of the same name is moved aside."""

    @model_validator(mode="after")
    def _length(self) -> TrainConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("expected steps or epochs, not both")
        return self


class MeshConfig(Section):
    """How devices share the work: sizes that multiply to the number of devices; one may be -1, what is left."""

    preset: Literal["auto", "ddp", "fsdp", "fsdp_tp", "tp", "hybrid", "context"] = "auto"
    """Sizes where none is given. `ddp`: all on data. `fsdp`: all on fsdp. `fsdp_tp`: tensor 2, the rest on fsdp. `tp`:
    all on tensor. `hybrid`: data across slices, the rest on fsdp. `context`: all on context. `auto`: ddp while
    parameters, gradients and AdamW state take at most half of a device's memory (16 GiB are assumed of a CPU), else
    fsdp (hybrid across TPU slices) while each device's share does, else fsdp_tp."""
    data: int | None = Field(default=None, ge=-1)
    """Groups that each hold a whole copy of the parameters, and rows of their own; absent: 1, or what `preset` says."""
    fsdp: int | None = Field(default=None, ge=-1)
    """Devices with rows of their own that share one copy of parameters and optimizer state (ZeRO-3); absent: 1, or what
    `preset` says."""
    context: int | None = Field(default=None, ge=-1)
    """Devices that split each row's tokens, for long rows, and also share the parameters; row lengths must be multiples
    of it; absent: 1, or what `preset` says."""
    tensor: int | None = Field(default=None, ge=-1)
    """Devices that split heads, MLP columns and vocabulary; absent: 1, or what `preset` says."""
    slices: int | None = Field(default=None, gt=0)
    """Groups of devices with a slow network between them, which only `data` crosses (a multiple of it); absent: the
    TPU slices there are; under hybrid, the processes of other devices; else 1."""


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
    directory: str = "runs"
    """Run directories are made here, by `name`."""
    tensorboard: bool = True
    """Write TensorBoard event files beside `metrics.jsonl`."""


class Config(Section):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its directory: letters, digits, `.`, `_` and `-`."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of initialisation, dropout and the order of the rows."""
    model: ModelConfig = ModelConfig()
    """What is trained, and how it is computed."""
    task: TaskConfig = ClassificationConfig()
    """What is learned, and from which columns."""
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
