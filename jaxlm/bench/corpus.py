"""`jaxlm bench --suite corpus`: a synthetic corpus of any size, tokenized once and read in batches: speed and memory.

What is measured runs in a process of its own, so that its peak of resident memory is that of the work alone.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.bench.harness import run_measurement
from jaxlm.bench.record import Measurement
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus.build import Tokenizing
from jaxlm.data.corpus.cache import open_corpora
from jaxlm.data.corpus.loader import CorpusLoader
from jaxlm.data.corpus.row_plan import plan_corpus
from jaxlm.tasks.language_model import next_token_row
from jaxlm.tokenizer.stand_in import word_tokenizer
from jaxlm.tokenizer.tokenizer import load_tokenizer

_WORDS, _DOCUMENTS = 30_000, 2_000
_SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe qui ro su ta ve wi xo yu".split()


def bench_corpus(
    *,
    gigabytes: float,
    tokenizer: Path | None = None,
    batches: int = 1000,
    rows: int = 64,
    length: int = 1024,
    concat_documents: bool = True,
    directory: Path | None = None,
) -> Measurement:
    """Measures a corpus.

    Args:
      gigabytes: size of the text, one file with a document to a line.
      tokenizer: directory; absent: one that looks up the words of the synthetic text, so that what is measured is more
        than the tokenizer.
      batches: training batches that are read.
      rows, length: of a batch.
      directory: where the corpus is put for the while, twice to three times its size; absent: the system's.
    Raises:
      RunFailure: the process that is measured failed.
    """
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        size = write_corpus(Path(folder) / "corpus.txt", int(gigabytes * 1e9))
        job = {
            "folder": folder, "tokenizer": None if tokenizer is None else str(tokenizer), "batches": batches,
            "rows": rows, "length": length, "concat_documents": concat_documents,
        }  # fmt: skip
        command = [sys.executable, "-m", "jaxlm.bench.corpus", json.dumps(job)]
        found = {"text_bytes": size, **run_measurement(command, show_stderr=True)}
        return Measurement(found, _table(size, job, found))


def write_corpus(path: Path, size: int) -> int:
    """Writes at least `size` bytes of documents, no two of them equal, of words as frequent as Zipf has it; returns
    the bytes."""
    rng = np.random.default_rng(0)
    words = np.asarray(_words())
    frequencies = 1 / np.arange(1, _WORDS + 1)
    frequencies /= frequencies.sum()
    documents = []
    for length in rng.geometric(1 / 300, _DOCUMENTS):
        documents.append(" ".join(words[rng.choice(_WORDS, length, p=frequencies)]).encode())
    written = number = 0
    with path.open("wb") as file:
        while written < size:
            order = rng.permutation(_DOCUMENTS).tolist()
            block = b"\n".join(b"%d %s" % (number + i, documents[k]) for i, k in enumerate(order)) + b"\n"
            number += _DOCUMENTS
            written += file.write(block)
    return written


def _words() -> list[str]:
    """Words of one to four syllables, short ones first."""

    def numbers() -> Iterator[str]:
        base = len(_SYLLABLES)
        for i in range(_WORDS):
            word, rest = "", i + 1
            while rest:
                rest, digit = divmod(rest - 1, base)
                word = _SYLLABLES[digit] + word
            yield word

    return list(numbers())


def measure(
    folder: str, tokenizer: str | None, batches: int, rows: int, length: int, concat_documents: bool
) -> dict[str, Any]:
    """Tokenizes folder/corpus.txt and reads batches of it in this process; returns what came of it."""
    source = {"path": str(Path(folder) / "corpus.txt"), "documents": "line"}
    data = DataConfig.model_validate({"train": source, "clean": {"deduplicate": True}})
    found: dict[str, Any] = {"resident_at_start": _peak()}
    start = time.perf_counter()
    splitter = word_tokenizer(_words()) if tokenizer is None else load_tokenizer(Path(tokenizer))
    how = Tokenizing("text", splitter, "documents", Path(folder) / "cache")
    ((corpus, _),) = open_corpora(data, ("train",), how)["train"]
    found |= {"tokenize_seconds": time.perf_counter() - start, "resident_tokenized": _peak()}
    start = time.perf_counter()
    plan = plan_corpus(corpus, row_length=length, lookahead=1, concat_documents=concat_documents, seed=0)
    loader = CorpusLoader(
        [(plan, 1.0)], build=lambda segments, _: next_token_row(segments, length, 0), rows=rows, seed=0
    )
    next(loader)
    found["plan_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    predicted = sum(int(next(loader)["weights"].sum()) for _ in range(batches))
    found |= {"read_seconds": time.perf_counter() - start, "resident_read": _peak()}
    loader.close()
    return found | {
        "documents": corpus.num_documents,
        "tokens": corpus.num_tokens,
        "predicted": predicted,
        "epoch": plan.num_rows,
    }


def _peak() -> int:
    """Bytes of resident memory at most so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _table(size: int, job: dict[str, Any], found: dict[str, Any]) -> str:
    tokenized, read = found["tokenize_seconds"], found["read_seconds"]
    share = job["batches"] * job["rows"] / found["epoch"]
    lines = [
        "| | |",
        "|---|---|",
        f"| text | {size / 1e9:.2f} GB, {found['documents']:,} documents, {found['tokens']:,} tokens |",
        f"| tokenized once | {tokenized:,.0f} s: {size / 1e6 / tokenized:.1f} MB/s, "
        f"{found['tokens'] / tokenized:,.0f} tokens/s |",
        f"| planned, first batch | {found['plan_seconds']:.1f} s |",
        f"| read | {job['batches']} batches of {job['rows']} x {job['length']}, {share:.0%} of an epoch: "
        f"{found['predicted'] / read:,.0f} tokens/s |",
        f"| peak of resident memory | {found['resident_read'] / 1e9:.2f} GB; after tokenizing "
        f"{found['resident_tokenized'] / 1e9:.2f} GB, before {found['resident_at_start'] / 1e9:.2f} GB |",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
