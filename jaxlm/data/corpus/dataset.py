"""Corpora for pretraining: a tokenizer, the tokenised documents of each split, and their division into rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxlm.config.schema import Config
from jaxlm.data.config import SourceConfig
from jaxlm.data.corpus.cache import open_corpora
from jaxlm.data.corpus.corpus import Corpus
from jaxlm.data.corpus.documents import Documents
from jaxlm.data.corpus.row_plan import RowPlan, plan_corpus
from jaxlm.data.sources.cleaning import clean_text
from jaxlm.errors import Interrupted, Stop
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.parallel import processes
from jaxlm.setup.tokenizer import make_tokenizer
from jaxlm.tasks import PRETRAINING
from jaxlm.tasks.language_model import PretrainingTask
from jaxlm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class CorpusSplit:
    """A split of one corpus, or of a mixture of several."""

    plans: tuple[RowPlan, ...]
    weights: tuple[float, ...]

    def describe(self) -> dict[str, int]:
        """What summary.json says of the split."""
        corpora = [plan.corpus for plan in self.plans]
        counts = {
            "documents": sum(corpus.num_documents for corpus in corpora),
            "tokens": sum(corpus.num_tokens for corpus in corpora),
            "bytes": sum(corpus.num_bytes for corpus in corpora),
            "rows": sum(plan.num_rows for plan in self.plans),
        }
        for corpus in corpora:
            for name, count in corpus.counts.items():
                counts[name] = counts.get(name, 0) + count
        return counts


def prepare_corpora(
    config: Config, checkpoint: HFCheckpoint | None, cache: Path | None, splits: Sequence[str], *, stop: Stop
) -> tuple[PretrainingTask, Tokenizer, dict[str, CorpusSplit], dict[str, int]]:
    """Returns task, tokenizer, splits, and what the cleaning counted; arguments as in `prepare.prepare`.

    The counts are empty here: a corpus keeps its own, which its split describes.
    """
    assert config.task.kind != "classification"
    column = config.task.text
    train = config.data.train if "train" in splits else None
    texts = None if train is None else lambda: _texts(config, column, train, stop)
    tokenizer = processes.first_then_others(lambda: make_tokenizer(config, checkpoint, cache, texts))
    task: PretrainingTask = PRETRAINING[config.task.kind].from_tokenizer(config.task, tokenizer, config.data.max_length)
    opened = processes.first_then_others(
        lambda: open_corpora(
            config.data,
            splits,
            text_column=column,
            tokenizer=tokenizer,
            cache=Path(config.data.token_cache or Path(config.logging.directory) / "tokens"),
            wrap=task.wrap,
            stop=stop,
        )
    )
    opened_splits: dict[str, CorpusSplit] = {
        split: CorpusSplit(
            tuple(_plan(config, task, corpus, training=split == "train") for corpus, _ in parts),
            tuple(weight for _, weight in parts),
        )
        for split, parts in opened.items()
    }
    return task, tokenizer, opened_splits, {}


def _texts(config: Config, column: str, source: SourceConfig, stop: Stop) -> Iterator[str]:
    """The training texts, for a tokenizer to be trained on; Interrupted where `stop` names a signal."""
    for part in source.mixture or (source,):
        documents = Documents(
            part, key="data.train", split="train", text_column=column, on_bad_row=config.data.on_bad_row
        )
        for piece in documents.read():
            if (signal := stop()) is not None:
                raise Interrupted(f"{signal}: the vocabulary is not learned yet; the same command learns it anew")
            yield clean_text(piece.text, config.data.clean)


def _plan(config: Config, task: PretrainingTask, corpus: Corpus, *, training: bool) -> RowPlan:
    return plan_corpus(
        corpus,
        row_length=config.data.max_length,
        lookahead=task.lookahead,
        concat_documents=config.data.concat_documents,
        overhead=task.overhead,
        cost=task.cost,
        seed=config.seed if training else None,
    )
