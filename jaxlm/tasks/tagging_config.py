"""The config section `task` of tagging."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxlm.tasks.skew import SkewConfig


class TaggingConfig(SkewConfig):
    """Fine-tuning to give each word a tag: named entities, parts of speech, chunks."""

    kind: Literal["tagging"] = "tagging"
    """What is learned."""
    tokens: str = "tokens"
    """Column of the words: a list, or a string of words between white space."""
    tags: str = "tags"
    """Column of the tags, one to a word; any of BIO, IOB1, IOBES, BILOU and BMES, or bare tags; or their numbers in
    `labels`."""
    text: str | None = None
    """Instead of `tokens`: column of plain texts."""
    entities: str = "entities"
    """With `text`: column of the entities, each {"start", "end", "label"} or [start, end, label], in characters, end
    exclusive."""
    scheme: Literal["auto", "bio", "iobes", "bmes", "bare"] = "auto"
    """Scheme that the model learns, to which tags are converted; auto: that of the training rows (of IOB1 and of
    character spans, bio)."""
    labels: tuple[str, ...] | None = None
    """Tags in id order; absent: the checkpoint's, else those of the training rows."""
    decode: Literal["greedy", "viterbi"] = "greedy"
    """How tags are chosen: the likeliest of each word, or the likeliest sequence that the scheme allows."""
    strict: bool = False
    """Count only entities that are written as the scheme has it; false: as conlleval."""
    baselines: bool = False
    """Also score, on the test (else validation) rows, the most frequent training tag of each word."""

    @model_validator(mode="after")
    def _agree(self) -> TaggingConfig:
        if self.text is not None and self.scheme == "bare":
            raise ValueError("scheme=bare is for tags of tokens; the spans of a text are entities (leave scheme out)")
        return self
