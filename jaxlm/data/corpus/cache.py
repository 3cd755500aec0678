"""Corpora tokenized once: found again by the content of what they are made from, or built, resumed and waited for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.config import DataConfig, SourceConfig
from jaxlm.data.corpus.build import Dropped, Tokenizing, build_tokens
from jaxlm.data.corpus.corpus import Corpus, map_array
from jaxlm.data.corpus.documents import Documents
from jaxlm.data.corpus.file_digests import Contents
from jaxlm.data.corpus.stored import MEMORY, open_or_make
from jaxlm.data.corpus.text_digests import DigestSet
from jaxlm.data.corpus.writer import DIGEST_TYPE, OFFSET_TYPE
from jaxlm.errors import UserError
from jaxlm.files import explain_write_errors

log = logging.getLogger("jaxlm")

_FORMAT = 1
_UNKNOWN_SHARE = 0.01
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Others:
    """Corpora that a training corpus is compared with.

    Attributes:
      held_out: those of the validation and test splits, for `clean.leaks`.
      earlier: what comes before in the same mixture, for `clean.deduplicate`.
    """

    held_out: Mapping[str, Sequence[Corpus]] = dataclasses.field(default_factory=dict[str, Sequence[Corpus]])
    earlier: Sequence[Corpus] = ()


def open_corpora(data: DataConfig, splits: Sequence[str], how: Tokenizing) -> dict[str, list[tuple[Corpus, float]]]:
    """Returns the tokenized corpora of a run, each source with its weight; as `open_corpus` does.

    Training documents are checked against the validation and test splits that are opened beside them, and, with
    `clean.deduplicate`, against the mixture's sources before their own.

    Args:
      splits: those to open of "train", "validation" and "test"; a split that `data` lacks is left out.
    """
    opened: dict[str, list[tuple[Corpus, float]]] = {}
    for split in ("validation", "test", "train"):  # so that training documents can be compared with the others
        source: SourceConfig | None = getattr(data, split)
        if source is None or split not in splits:
            continue
        held_out = {name: [corpus for corpus, _ in parts] for name, parts in opened.items()}
        parts = [(f"data.{split}", source)]
        if source.mixture is not None:
            parts = [(f"data.{split}.mixture[{i}]", part) for i, part in enumerate(source.mixture)]
        corpora: list[tuple[Corpus, float]] = []
        for key, part in parts:
            others = Others(held_out, [corpus for corpus, _ in corpora])
            corpus = open_corpus(part, key=key, split=split, data=data, how=how, others=others)
            corpora.append((corpus, part.weight))
        opened[split] = corpora
    return {split: opened[split] for split in splits if split in opened}


def open_corpus(
    source: SourceConfig,
    *,
    key: str,
    split: str,
    data: DataConfig,
    how: Tokenizing,
    others: Others | None = None,
) -> Corpus:
    """Returns the tokens of one source: from the cache, or after tokenizing them into it.

    What is in the cache is recognized by the content of the source's files, the settings that decide documents and
    cleaning, the tokenizer, and `how.wrap`; not by names or times. A build that was killed goes on where it stood, and
    ends with the files that one build in one go would have written. Of several processes on one machine one builds, and
    the others wait for it. A corpus that is damaged in the cache is named and built anew.

    Args:
      source: anything but a mixture.
      key: its config key for messages.
      split: "train", "validation" or "test"; duplicates and leaks are dropped from "train" only.
      data: `clean` and `on_bad_row` are used.
      others: what training documents are compared with; None: nothing.

    Raises:
      Interrupted: `how.stop` named a signal; what is done is saved.
      UserError: the source cannot be read, or nothing of it is left.
      RunFailure: the cache cannot be written.
    """
    documents = Documents(source, key=key, split=split, text_column=how.text_column, on_bad_row=data.on_bad_row)
    cache, others = how.cache.absolute(), others or Others()
    with explain_write_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    training = split == "train"
    earlier = others.earlier if training and data.clean.deduplicate else ()
    held_out = others.held_out if training and data.clean.leaks != "ignore" else {}
    contents = Contents(cache / MEMORY)
    clean = data.clean.model_dump(include={"unicode", "control_characters", "whitespace"})
    if training:
        clean["deduplicate"] = [corpus.fingerprint for corpus in earlier] if data.clean.deduplicate else None
        held = sorted(corpus.fingerprint for corpora in held_out.values() for corpus in corpora)
        clean["leaks"] = held if held and data.clean.leaks == "drop" else None
    identity = {
        "format": _FORMAT,
        "tokenizer": how.tokenizer.fingerprint,
        "wrap": how.wrap,
        "clean": clean,
        "documents": documents.identity(contents),
    }
    contents.save()
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = cache / fingerprint[:32]

    def build() -> None:
        known = leaks = None
        if training and data.clean.deduplicate:
            known = DigestSet().add_all(corpus.digests for corpus in earlier)
        if training and data.clean.leaks == "drop":
            leaks = _digests(held_out)
        building = folder.with_name(f"{folder.name}.building")
        with explain_write_errors(building):
            build_tokens(building, documents, how, data.clean, Dropped(known, leaks), identity)
            building.rename(folder)

    def unknown_ids(facts: dict[str, Any]) -> str | None:
        vocab_size = how.tokenizer.vocab_size
        return None if facts["max_id"] < vocab_size else f"token {facts['max_id']} in a vocabulary of {vocab_size}"

    index = folder / "index.json"
    facts = open_or_make(index, contents, build, name=documents.name, what="tokenizing", check_facts=unknown_ids)
    corpus = _load(folder, documents.name, fingerprint, facts)
    _report(corpus, facts, key)
    if data.clean.leaks == "warn":
        corpus = dataclasses.replace(corpus, counts={**corpus.counts, **_count_leaks(corpus, held_out)})
    return corpus


def _load(folder: Path, name: str, fingerprint: str, facts: dict[str, Any]) -> Corpus:
    tokens = map_array(folder / "tokens.bin", np.dtype(facts["dtype"]))
    offsets, digests = map_array(folder / "offsets.bin", OFFSET_TYPE), map_array(folder / "digests.bin", DIGEST_TYPE)
    return Corpus(name, tokens, offsets, digests, facts["bytes"], fingerprint, facts["counts"], folder)


def _report(corpus: Corpus, index: dict[str, Any], key: str) -> None:
    """Logs what reading and cleaning did.

    Raises:
      UserError: nothing is left.
    """
    counts = dict(corpus.counts)
    bad, unknown = counts.pop("bad_rows", 0), counts.pop("unknown_tokens", 0)
    if bad:
        log.warning("%s: %d rows are bad and were skipped; the first: %s", corpus.name, bad, index["problem"])
    words = ", ".join(f"{name.replace('_', ' ')}: {count:,}" for name, count in counts.items() if count)
    if not corpus.num_documents:
        raise UserError(f"{corpus.name}: no document is left ({words or 'none was read'}); {key} needs at least one")
    log.info(
        "%s: %s documents, %s tokens, %s bytes of text%s",
        corpus.name, f"{corpus.num_documents:,}", f"{corpus.num_tokens:,}", f"{corpus.num_bytes:,}",
        f" ({words})" if words else "",
    )  # fmt: skip
    if unknown > _UNKNOWN_SHARE * corpus.num_tokens:
        log.warning(
            "%s: the tokenizer does not know %.1f%% of it; another tokenizer, or one trained on such text, learns more",
            corpus.name, 100 * unknown / corpus.num_tokens,
        )  # fmt: skip


def _digests(held_out: Mapping[str, Sequence[Corpus]]) -> DigestSet:
    return DigestSet().add_all(corpus.digests for corpora in held_out.values() for corpus in corpora)


def _count_leaks(corpus: Corpus, held_out: Mapping[str, Sequence[Corpus]]) -> dict[str, int]:
    """Returns how many training documents are also in each split, and warns of them."""
    counts = {}
    for split, corpora in held_out.items():
        known = _digests({split: corpora})
        chunks = range(0, corpus.num_documents, _CHUNK)
        count = sum(int(known.contains(np.array(corpus.digests[i : i + _CHUNK])).sum()) for i in chunks)
        counts[f"leaks_{split}"] = count
        if count == corpus.num_documents:
            log.warning(
                "every training document of %s also stands in %s: a score on it says nothing about unseen text; give "
                "data.%s documents of its own", corpus.name, split, split
            )  # fmt: skip
        elif count:
            log.warning(
                "clean.leaks: %d of %d training documents of %s also stand in %s; data.clean.leaks=drop drops them",
                count, corpus.num_documents, corpus.name, split,
            )  # fmt: skip
    return counts
