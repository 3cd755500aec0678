"""Summarization: ROUGE against one or more references, beside the first sentences of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxlm.data.examples.tables import TableSources
from jaxlm.metrics.rouge import Words, rouge_scores, words_of
from jaxlm.tasks.records import Context, Metric
from jaxlm.tasks.sentences import sentences
from jaxlm.tasks.text_cells import sample_references
from jaxlm.tasks.text_config import WritingConfig
from jaxlm.tasks.text_layout import make_layout
from jaxlm.tasks.text_to_text import TextToText


class SummarizationConfig(WritingConfig):
    """Fine-tuning to summarize."""

    kind: Literal["summarization"] = "summarization"
    """What is learned: the summary of each source."""
    source: str = "document"
    """Column of the texts that are summarized; of a list of sentences, all of them."""
    target: str = "summary"
    """Column of the summaries; a list holds several references, of which training learns the first."""
    words: Words | Literal["auto"] = "auto"
    """How ROUGE splits texts: `latin`, runs of a-z and 0-9, as the package rouge-score does; `unicode`, words of any
    script, and each Chinese or Japanese character by itself; `auto`: the latter where most letters of the training
    summaries are not a-z."""
    stemmer: bool = False
    """ROUGE compares stems of English words."""


@dataclass(frozen=True, eq=False)
class Summarization(TextToText):
    """Summarizes; its best checkpoint has the highest ROUGE-L.

    Attributes:
      words: of ROUGE.
    """

    config: SummarizationConfig
    words: Words = "latin"

    Config = SummarizationConfig
    scored = (Metric("rougeL"), Metric("rouge1"), Metric("rouge2"), Metric("rougeLsum"))

    @classmethod
    def create(cls, config: SummarizationConfig, context: Context, sources: TableSources | None) -> Summarization:
        """Raises UserError as `TextToText.create`."""
        return cls(config, context, make_layout(config, context), words=_words(config, sources))

    def compare(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        return rouge_scores(texts, references, self.words, stemmer=self.config.stemmer)

    def text_score(self, text: str, references: Sequence[str]) -> float:
        return rouge_scores([text], [references], self.words, stemmer=self.config.stemmer)["rougeL"]

    def computed_with(self, references: Sequence[Sequence[str]]) -> dict[str, str]:
        settings = f"rouge-score, words={self.words}, stemmer={str(self.config.stemmer).lower()}"
        counts = {len(given) for given in references}
        number = str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        return {
            "rouge": f"{settings}, F-measure, best of {number} reference(s); rougeLsum: sentences end at line feeds"
        }

    def systems(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
        found = super().systems(rows)
        parted = [sentences(row.get(self.config.source, self.source_text(row))) for row in rows]
        for number in (1, 3):
            found[f"lead_{number}"] = [" ".join(part[:number]) for part in parted]
        return found


def _words(config: SummarizationConfig, sources: TableSources | None) -> Words:
    if config.words != "auto":
        return config.words
    texts = sample_references({} if sources is None else sources.tables, config.target)
    return words_of(texts)
