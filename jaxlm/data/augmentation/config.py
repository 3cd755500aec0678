"""The config section `data.augment`."""

from __future__ import annotations

from pydantic import Field, model_validator

from jaxlm.local_paths import LocalPath
from jaxlm.section import Section

_EDITS = ("delete", "swap", "insert", "replace", "case", "typo", "cutoff")


class AugmentConfig(Section):
    """Changed copies of the training rows, beside the rows as they are. Each share is of the words of a text; of
    Chinese and Japanese, of its characters."""

    copies: int = Field(default=1, gt=0)
    """Changed copies of each row."""
    delete: float = Field(default=0.0, ge=0, lt=1)
    """Share that is left out; one word stays."""
    swap: float = Field(default=0.0, ge=0, le=1)
    """Share that changes places with another word."""
    insert: float = Field(default=0.0, ge=0, le=1)
    """As many words are put in anywhere: synonyms of words of the text, without `synonyms` the words themselves."""
    replace: float = Field(default=0.0, ge=0, le=1)
    """Share that is replaced by a synonym, where the table has one."""
    synonyms: LocalPath | None = None
    """Table of synonyms: a line is a word and, behind tabs, words that may stand in its place."""
    case: float = Field(default=0.0, ge=0, le=1)
    """Share whose letters become small, capital, or small behind a capital."""
    typo: float = Field(default=0.0, ge=0, le=1)
    """Share with a slip: two letters change places, or one is left out or doubled."""
    cutoff: float = Field(default=0.0, ge=0, lt=1)
    """Share of the tokens (pieces of words) that become the mask token."""

    @model_validator(mode="after")
    def _edits(self) -> AugmentConfig:
        if not any(getattr(self, name) for name in _EDITS):
            raise ValueError(
                f"expected a share above 0 of at least one of {', '.join(_EDITS)}; copies alone teach nothing"
            )
        if self.replace and self.synonyms is None:
            raise ValueError("replace: expected `synonyms`, a table of them")
        if self.synonyms is not None and not (self.replace or self.insert):
            raise ValueError("synonyms: only with replace or insert")
        return self
