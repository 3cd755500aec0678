"""Translation: BLEU, chrF and TER, and language codes where the tokenizer has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jaxlm.data.examples.tables import TableSources
from jaxlm.errors import UserError
from jaxlm.metrics.translation import (
    Tokenization,
    missing_splitter,
    sentence_chrf,
    signatures,
    tokenization_of,
    translation_scores,
)
from jaxlm.tasks.language_codes import affixes, find_code
from jaxlm.tasks.records import Context, Metric
from jaxlm.tasks.text_cells import sample_references
from jaxlm.tasks.text_config import WritingConfig
from jaxlm.tasks.text_layout import make_layout
from jaxlm.tasks.text_to_text import TextToText


class TranslationConfig(WritingConfig):
    """Fine-tuning to translate."""

    kind: Literal["translation"] = "translation"
    """What is learned: the translation of each source."""
    source: str = "en"
    """Column of the texts that are translated."""
    target: str = "de"
    """Column of the translations; a list holds several references, of which training learns the first."""
    source_language: str | None = None
    """Code of the language that is read, where the tokenizer has codes (mBART: `en_XX`)."""
    target_language: str | None = None
    """Code of the language that is written."""
    tokenization: Tokenization | Literal["auto"] = "auto"
    """How BLEU splits texts into words, as sacreBLEU names it; `auto`: by the language code, the name of the column or
    the letters of the training targets `zh` for Chinese, `ja-mecab` for Japanese, `ko-mecab` for Korean (`char` where
    MeCab is not installed), else `13a`."""


@dataclass(frozen=True, eq=False)
class Translation(TextToText):
    """Translates; its best checkpoint has the highest BLEU.

    Attributes:
      tokenization: of BLEU.
    """

    config: TranslationConfig
    tokenization: Tokenization = "13a"

    Config = TranslationConfig
    scored = (Metric("bleu"), Metric("chrf"), Metric("ter", False))

    @classmethod
    def create(cls, config: TranslationConfig, context: Context, sources: TableSources | None) -> Translation:
        """Raises UserError as `TextToText.create`, for language codes that the tokenizer lacks, and for a split of BLEU
        that is not installed."""
        layout = make_layout(config, context)
        tokenizer = context.tokenizer
        if layout.start_id is None and (config.source_language or config.target_language):
            raise UserError(
                "task.source_language, task.target_language: a decoder alone has no language codes; write the "
                "languages into task.prefix or task.template"
            )
        if config.source_language is not None:
            code = find_code(tokenizer, config.source_language, "task.source_language")
            layout = replace(layout, source_affixes=_with_code(context, code, layout.source_affixes))
        if config.target_language is not None:
            code = find_code(tokenizer, config.target_language, "task.target_language")
            if tokenizer.tokens([code])[0].startswith(">>"):  # Marian is told it by the text that it reads
                before, after = layout.source_affixes
                layout = replace(layout, source_affixes=(np.append(np.int32(code), before), after))
            else:
                before, after = target = _with_code(context, code, layout.target_affixes)
                start = code if code in after.tolist() else layout.start_id
                forced = code if code in before.tolist() else None
                layout = replace(layout, target_affixes=target, start_id=start, forced_id=forced)
        return cls(config, context, layout, _tokenization(config, sources))

    def compare(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        return translation_scores(texts, references, self.tokenization)._asdict()

    def text_score(self, text: str, references: Sequence[str]) -> float:
        return sentence_chrf(text, references)

    def computed_with(self, references: Sequence[Sequence[str]]) -> dict[str, str]:
        return signatures(references, self.tokenization)


def _with_code(context: Context, code: int, around: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The special tokens of a language; behind a text at least those that stand there now."""
    before, after = affixes(context.tokenizer, code)
    return before, after if len(after) else around[1]


def _tokenization(config: TranslationConfig, sources: TableSources | None) -> Tokenization:
    if config.tokenization != "auto":
        if sources is not None and (extra := missing_splitter(config.tokenization)) is not None:
            raise UserError(
                f"task.tokenization={config.tokenization}: MeCab is not installed: pip install '{extra}', or set char, "
                "which splits by characters"
            )
        return config.tokenization
    texts = sample_references({} if sources is None else sources.tables, config.target)
    return tokenization_of(config.target_language or config.target, texts)
