"""What tasks are made from, and what they give: settings, requests, metrics, outputs, answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxlm.data.config import DataConfig
from jaxlm.data.examples.token_store import TokenStore
from jaxlm.errors import Stop
from jaxlm.section import Section
from jaxlm.tokenizer.tokenizer import Tokenizer


class TaskConfig(Section):
    """Base of the sections `task`; each has a `kind`, its key in `TASKS`."""

    kind: str

    def key_of(self, column: str) -> str:
        """Returns the config key that names a column, for messages: `task.text`."""
        for name, value in self:
            if name != "kind" and (value == column or isinstance(value, tuple) and column in value):
                return f"task.{name}"
        return "task"

    @classmethod
    def of_checkpoint(cls) -> TaskConfig:
        """Returns the section of a model that no run made and whose columns nobody names."""
        return cls.model_validate({})

    @classmethod
    def of_texts(cls, columns: Sequence[str]) -> TaskConfig:
        """Returns the section of a model that reads these text columns.

        Raises:
          UserError: another number of columns than the task reads.
        """
        return cls.model_validate({"text": columns[0] if len(columns) == 1 else tuple(columns)})


class Metric(NamedTuple):
    """A score that a task can give."""

    name: str
    higher_is_better: bool = True
    headline: bool = True
    """On the console and at the head of the report; others go to the files only."""


class Outputs(NamedTuple):
    """What one evaluation step leaves for the host; a pytree, made inside jit."""

    sums: Mapping[str, Any] = {}
    """float32 [] each; added up over batches, devices and processes."""
    slots: Mapping[str, Any] = {}
    """[B, S, ...] each: an entry for each example."""
    tokens: Mapping[str, Any] = {}
    """[B, T, ...] each: an entry for each token of the first stream."""


class Answer(NamedTuple):
    """A row of a split, its gold label (None: unlabelled), and what the task keeps of the model's outputs for it."""

    row: Mapping[str, Any]
    label: Any
    kept: Any


class Generation(NamedTuple):
    """How a text is written token by token; names and meanings as in Transformers."""

    max_new_tokens: int | None = 64
    """None: `max_length` counts."""
    max_length: int | None = None
    """Most tokens of prompt and continuation together."""
    min_new_tokens: int = 0
    min_length: int = 0
    """Fewest tokens of prompt and continuation together."""
    do_sample: bool = False
    """Tokens are drawn; otherwise the likeliest is taken."""
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int = 0
    eos_ids: tuple[int, ...] = ()
    forced_bos_id: int | None = None
    forced_eos_id: int | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    stop: tuple[str, ...] = ()
    """Strings that end a text."""
    tokenizer: Tokenizer | None = None
    """What `stop` is read with."""
    prefix: bool = False
    """Prompts are read in both directions."""

    def limited(self, max_new_tokens: int) -> Generation:
        """Returns the settings with this limit where they have none."""
        if self.max_new_tokens is not None or self.max_length is not None:
            return self
        return self._replace(max_new_tokens=max_new_tokens)


@runtime_checkable
class Sources(Protocol):
    """The data that a config names, opened but not yet tokenized."""

    @property
    def can_train_tokenizer(self) -> bool:
        """Whether there are training texts."""
        ...

    def texts(self) -> Iterator[str]:
        """The training texts, for a tokenizer to be trained on."""
        ...

    def texts_digest(self) -> str:
        """Hex SHA-256 of all that decides `texts`."""
        ...


@dataclass(frozen=True)
class Request:
    """Which data to open, and how.

    Attributes:
      data: the section `data`.
      splits: those to open of train, validation, test.
      token_cache: folder of what is tokenized once.
      seed: of the run.
      stop: names the signal that asks for an end, if any.
    """

    data: DataConfig
    splits: Sequence[str]
    token_cache: Path
    seed: int = 0
    stop: Stop = lambda: None


@dataclass(frozen=True)
class Context:
    """What a task is made from: settings, and facts of the tokenizer, the checkpoint and the model family.

    Attributes:
      data: the section `data`.
      tokenizer: of the run.
      hf_config: config.json of the checkpoint whose head is taken over; None: a new head.
      pool: the token that the family reads for a whole example, "first" or "last".
      label_smoothing: `train.label_smoothing`.
      metric: `train.metric`; None: the task's own.
      batch_size: `train.batch_size`; None with `train.batch_tokens`.
      logits_chunk: tokens of a row whose logits exist at once; None: chosen by their number.
      seed: of the run.
      decoder_start_id: the token that a decoder reads first; None: padding's.
      generation: how the model writes, if it does.
      head: kind of the model's head, of those that the family has.
      trained: the model is applied as it is, and not trained: what was tuned for it holds.
      tokens: keeps the tokens of many rows for the next run; None: they are tokenized each time.
    """

    data: DataConfig
    tokenizer: Tokenizer
    hf_config: Mapping[str, Any] | None = None
    pool: Literal["first", "last"] = "first"
    label_smoothing: float = 0.0
    metric: str | None = None
    batch_size: int | None = None
    logits_chunk: int | None = None
    seed: int = 0
    decoder_start_id: int | None = None
    generation: Generation = Generation()
    head: str = ""
    trained: bool = False
    tokens: TokenStore | None = None

    def token_ids(self, texts: Sequence[str], tokenizer: Tokenizer | None = None) -> Iterable[np.ndarray]:
        """Returns int32 [T] of each text, without special tokens: those that are kept, else what the tokenizer makes.

        Args:
          tokenizer: absent: that of the run.
        """
        tokenizer = tokenizer or self.tokenizer
        return tokenizer.token_ids(texts) if self.tokens is None else self.tokens.ids(tokenizer, texts)
