"""The config section `model`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jaxlm.config.adapters import IA3Config, LoraConfig
from jaxlm.local_paths import LocalPath
from jaxlm.section import Section
from jaxlm.tokenizer.config import TokenizerTrainingConfig


class ModelConfig(Section):
    """What is trained, and how it is computed."""

    init: LocalPath | None = None
    """An HF-format directory, a hub id, an earlier run's directory, or the config of a pretraining run, which is run
    first if it has no result yet; absent: random, from `family` + `preset`."""
    base: LocalPath | None = None
    """The model that an adapter of PEFT, named in `init`, stands over; absent: what its adapter_config.json names."""
    family: str | None = None
    """Architecture of a model that starts from random weights, for instance `bert`; an unknown name is answered with
    all there are."""
    preset: str | None = None
    """Size of that architecture, for instance `base`; an unknown name is answered with all there are."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the family's own config fields, for instance `{num_layers: 4, embed_dim: 256, num_heads: 4, mlp_dim:
    1024}`; only without `init`. An unknown one is answered with all there are."""
    tokenizer: LocalPath | None = None
    """A tokenizer directory or hub id; absent: the one in `init`."""
    train_tokenizer: TokenizerTrainingConfig | None = None
    """Train a tokenizer on the training texts instead; for models that start from random parameters."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    commit: str | None = None
    """Commit of the hub id in `init`; absent: found when the run starts, and kept in its config.yaml for resuming."""
    tokenizer_commit: str | None = None
    """The same of the hub id in `tokenizer`."""
    new_head: bool = False
    """Initialize the task head afresh even where the checkpoint has one."""
    freeze: tuple[str, ...] = ()
    """What is not trained: `embeddings`, `layers.0-3` (the lowest is 0), `encoder`, `decoder`, `encoder.layers.0-3`,
    `trunk` (all but the head), or patterns of parameter names such as `trunk/stack/layers/q*`."""
    mixout: float = Field(default=0.0, ge=0, lt=1)
    """With `init`: the share of the weights of dense layers that each step takes as they were pretrained."""
    reinit_layers: int = Field(default=0, ge=0)
    """With `init`: so many of the top layers (of an encoder-decoder, the decoder's) start afresh."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters, softmax, norms and loss stay float32."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Overrides the checkpoint's hidden dropout."""
    attention_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Overrides the checkpoint's dropout of attention probabilities. 0 is recommended on a TPU: its kernel has none."""
    classifier_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Overrides the checkpoint's dropout before the task head."""
    layer_drop: float = Field(default=0.0, ge=0, lt=1)
    """How often each layer is skipped in a training step, for all rows of a micro-batch; a last layer that is computed
    at examples' slots alone never is."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Attention kernel; `auto`: `splash` (JAX's kernel, or one of ours) on a TPU and cuDNN on a GPU, where they can do
    what is asked, else XLA. On a CPU, `splash` is interpreted, very slowly."""
    matmul: Literal["auto", "float32", "bfloat16"] = "auto"
    """On a single CPU device: dense maps of `dtype: float32` multiply what is rounded to bfloat16, and add up in
    float32, twice as fast where the CPU has instructions for it. `auto`: where it has, in training steps; evaluation,
    prediction and other devices compute as `dtype` says."""
    remat: Literal["none", "full", "dots"] | tuple[str, ...] = "none"
    """Activations recomputed in the backward pass: none, all of a layer, or all but its matrix products and attention's
    outputs; or a list of those that are kept: `attention`, and dense maps by the names of their parameters, such as
    `[attention, q, k, v]`."""
    logits_chunk: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    """Language models: tokens of a row whose logits exist at once; `auto`: all, unless that were over 2^25 numbers."""
    unroll: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    """Layers unrolled per scan step; `auto`: all of them on a CPU (faster steps), one elsewhere (faster compiles)."""

    lora: LoraConfig | None = None
    """Trains low-rank adapters and the task's head; the rest of `init` is frozen."""
    ia3: IA3Config | None = None
    """Trains factors of activations and the task's head; the rest of `init` is frozen."""
    bitfit: bool = False
    """Trains biases and the task's head; the rest of `init` is frozen."""
    frozen_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """How parameters that are frozen whole are held; bfloat16 takes half the memory, int8 a quarter (of the weights of
    dense maps, with a scale for each output; the rest in bfloat16). The export is rounded, too."""

    @property
    def chunk(self) -> int | None:
        """`logits_chunk` as a number of tokens; None for `auto`."""
        return None if self.logits_chunk == "auto" else self.logits_chunk

    @property
    def init_config(self) -> Path | None:
        """The config file of the pretraining run that `init` names; None if it names anything else."""
        return Path(self.init) if self.init is not None and self.init.endswith((".yaml", ".yml")) else None

    @model_validator(mode="after")
    def _random_or_given(self) -> ModelConfig:
        given = [k for k in ("preset", "config") if getattr(self, k)]
        if self.init is not None and given:
            raise ValueError(f"{' and '.join(given)}: only for random weights, without init")
        if self.init is None and self.mixout:
            raise ValueError("mixout: only for a pretrained model (init), whose weights it falls back on")
        if self.mixout and (self.lora or self.ia3 or self.bitfit):
            raise ValueError("mixout: the kernels are not trained with lora, ia3 or bitfit; leave it out")
        if self.init is None and self.reinit_layers:
            raise ValueError("reinit_layers: only for the layers of a pretrained model (init); all are new without one")
        return self

    @model_validator(mode="after")
    def _base_of_an_adapter(self) -> ModelConfig:
        if self.base is not None and self.init is None:
            raise ValueError("base: expected the folder of an adapter in init")
        return self

    @model_validator(mode="after")
    def _one_way_of_few_parameters(self) -> ModelConfig:
        given = [k for k in ("lora", "ia3", "bitfit") if getattr(self, k)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: expected one of them")
        if given and self.freeze:
            raise ValueError(f"freeze: with {given[0]} all but what it trains is frozen; leave freeze out")
        if given and self.reinit_layers:
            raise ValueError(f"reinit_layers: with {given[0]} the layers are frozen; new ones would learn nothing")
        return self
