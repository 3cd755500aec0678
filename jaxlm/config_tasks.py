"""The config schema of tasks: one section for each `task.kind`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from jaxlm.config_section import Section


class ClassificationConfig(Section):
    """Fine-tuning to predict one label, several, or a number for each text or pair of texts."""

    kind: Literal["classification"] = "classification"
    """What is learned; absent: classification."""
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


class LanguageModelConfig(Section):
    """What the objectives of pretraining have in common."""

    text: str = "text"
    """Column of the documents, where they come as rows (jsonl, parquet, TFDS)."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the square of the log-partition function in the loss (Chowdhery et al., 2022); 1e-4 is usual."""


class SamplesConfig(Section):
    """Text that a generative model writes at each evaluation, for the log and the report."""

    prompts: tuple[str, ...] = ()
    """Beginnings to continue; absent: the first words of the first validation documents."""
    number: int = Field(default=2, ge=0)
    """Samples without prompts of their own; 0: none."""
    tokens: int = Field(default=64, gt=0)
    """Tokens written after each prompt, at most."""
    temperature: float = Field(default=0.8, ge=0)
    """Divides the logits; 0: always the likeliest token."""
    top_k: int | None = Field(default=None, gt=0)
    """Draw from so many likeliest tokens only."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw from the likeliest tokens that hold so much of the probability."""


class CausalLMConfig(LanguageModelConfig):
    """Pretraining to predict each next token (GPT-2, Llama, LSTM, GRU)."""

    kind: Literal["causal_lm"] = "causal_lm"
    """Maximum likelihood of the next token."""
    samples: SamplesConfig = SamplesConfig()
    """What is written at each evaluation."""


class PrefixLMConfig(LanguageModelConfig):
    """Pretraining to continue a prefix that is read in both directions (Raffel et al., 2020, section 3.2.1)."""

    kind: Literal["prefix_lm"] = "prefix_lm"
    """Maximum likelihood of the tokens behind a prefix of random length."""
    samples: SamplesConfig = SamplesConfig()
    """What is written at each evaluation."""


class MaskedLMConfig(LanguageModelConfig):
    """Pretraining to restore masked tokens (BERT, RoBERTa, DistilBERT)."""

    kind: Literal["masked_lm"] = "masked_lm"
    """Maximum likelihood of the tokens that were masked."""
    mask_rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens to predict: 80 % become [MASK], 10 % a random token, 10 % stay (Devlin et al., 2019)."""
    whole_word: bool = False
    """Mask all pieces of a word or none."""


class SpanCorruptionConfig(LanguageModelConfig):
    """Pretraining to restore spans that sentinels replace (T5; Raffel et al., 2020)."""

    kind: Literal["span_corruption"] = "span_corruption"
    """Maximum likelihood of the spans that were taken out."""
    noise_density: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that is taken out."""
    mean_span: float = Field(default=3.0, ge=1)
    """Mean length of a span in tokens."""


class ReplacedTokensConfig(LanguageModelConfig):
    """Pretraining to tell which tokens a small generator replaced (ELECTRA; Clark et al., 2020)."""

    kind: Literal["replaced_tokens"] = "replaced_tokens"
    """Replaced-token detection, together with the generator's masked language modelling."""
    mask_rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that the generator is asked for."""
    whole_word: bool = False
    """Mask all pieces of a word or none."""
    generator_size: float = Field(default=0.25, gt=0, le=1)
    """Width of the generator's layers as a share of the discriminator's."""
    discriminator_weight: float = Field(default=50.0, gt=0)
    """Weight of the discriminator's loss beside the generator's."""


def _kind(value: Any) -> Any:
    """The kind that a section names; without one it is classification, the everyday task."""
    return value.get("kind", "classification") if isinstance(value, dict) else getattr(value, "kind", None)


TaskConfig = Annotated[
    Annotated[ClassificationConfig, Tag("classification")]
    | Annotated[CausalLMConfig, Tag("causal_lm")]
    | Annotated[PrefixLMConfig, Tag("prefix_lm")]
    | Annotated[MaskedLMConfig, Tag("masked_lm")]
    | Annotated[SpanCorruptionConfig, Tag("span_corruption")]
    | Annotated[ReplacedTokensConfig, Tag("replaced_tokens")],
    Discriminator(_kind),
]
