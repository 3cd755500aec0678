"""Trains a tokenizer on text files and writes its directory: the work of `jaxlm train-tokenizer`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jaxlm.data.config import SourceConfig
from jaxlm.data.corpus.documents import Documents
from jaxlm.data.sources.files import find_files, plain_suffix
from jaxlm.errors import RunFailure, UserError
from jaxlm.files import atomic_folder
from jaxlm.local_paths import check_local
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.sentencepiece_training import MAX_SENTENCES
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.tokenizer.training import train_tokenizer

log = logging.getLogger("jaxlm")

_ROWS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_REFUSED = (".arrow", ".bz2", ".csv", ".tar", ".tsv", ".xz", ".zip")


def train_to_directory(
    inputs: Sequence[str],
    output: Path,
    settings: TokenizerTrainingConfig,
    *,
    column: str = "text",
    max_sentences: int = MAX_SENTENCES,
) -> Tokenizer:
    """Trains on the texts of files and writes a Hugging Face directory, whole or not at all.

    Args:
      inputs: names and glob patterns.
      output: a new or an empty directory.
      settings: type and size of the tokenizer.
      column: of jsonl and parquet files.
      max_sentences: pieces of text that unigram and bpe learn from.
    Raises:
      UserError: as `train_tokenizer`; an unreadable file; an `output` that holds something.
      RunFailure: the directory cannot be written.
    """
    check_local(output, "--output")
    output = output.resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        found = "a directory that is not empty" if output.is_dir() else "a file"
        raise UserError(f"--output: {output} is {found}; expected a new or an empty directory, so name another")
    texts = read_texts(input_files(inputs), column)
    tokenizer = train_tokenizer(texts, settings, max_sentences=max_sentences)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(output) as folder:
            tokenizer.save(folder)
    except OSError as error:
        raise RunFailure(f"--output: cannot write {output}: {error}") from error
    log.info("wrote %s: %s, %d tokens", output, settings.type, tokenizer.vocab_size)
    return tokenizer


def input_files(patterns: Sequence[str]) -> tuple[Path, ...]:
    """Returns the files of names and patterns, each once.

    Raises:
      UserError: a file that is not there or of a format that is not read, or a pattern that no file matches.
    """
    files = find_files(patterns, "--input")
    for path in files:
        if (suffix := plain_suffix(path)) in _REFUSED:
            raise UserError(
                f"--input: {path}: {suffix} is not read here; expected text (one piece to a line), .jsonl or .parquet, "
                "plain, .gz or .zst"
            )
    return files


def read_texts(files: Iterable[Path], column: str = "text") -> Iterator[str]:
    """Yields the texts of files in order, empty ones left out: values of a column, or the lines of any other file.

    It holds a row of jsonl, a batch of a parquet column, or a piece of a line of text at a time.

    Raises:
      UserError: a file that is damaged, not UTF-8, or without the column, with the row.
    """
    for path in files:
        kind = _ROWS.get(plain_suffix(path), "text")
        documents = "line" if kind == "text" else "file"
        source = SourceConfig.model_validate({"path": str(path), "format": kind, "documents": documents})
        options = {"text_column": column, "column_key": "--column", "on_bad_row": "skip"}
        for piece in Documents(source, key="--input", split="train", **options).read():
            if piece.problem is not None:
                raise UserError(f"{piece.problem}; correct the row or leave it out")
            if piece.text:
                yield piece.text
