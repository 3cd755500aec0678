"""The tokenizer and the checkpoint that a run starts from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.files import atomic_folder, explain_write_errors, read_sealed, sha256, write_sealed
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.hf.hub import find_model_dir
from jaxlm.hf.opening import open_model
from jaxlm.models import get_family
from jaxlm.parallel import processes
from jaxlm.tasks.records import Sources
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jaxlm.tokenizer.training import train_tokenizer

MADE_FROM = "made_from.json"
"""File of a trained tokenizer's folder: its settings, a digest of the texts, and digests of the other files."""

log = logging.getLogger("jaxlm")


def open_checkpoint(config: Config) -> HFCheckpoint | None:
    """What `model.init` names, its config.json read and checked before any data; None without it."""
    if config.model.init is None:
        return None
    model = config.model
    checkpoint = open_model(
        config.model.init, key="model.init", revision=model.commit or model.revision, base=model.base
    )
    checkpoint.model_config  # noqa: B018  an unsupported checkpoint is refused
    family = config.model.family
    if family is not None and get_family(family, "model.family") is not checkpoint.family:
        raise UserError(
            f"model.family={family}: the checkpoint {config.model.init} is a {checkpoint.family.name}; leave "
            "model.family out, since the checkpoint decides"
        )
    return checkpoint


def make_tokenizer(
    config: Config, checkpoint: HFCheckpoint | None, cache: Path | None, sources: Sources | None
) -> Tokenizer:
    """Loads the tokenizer that a config names, or trains one.

    Args:
      cache: folder where a trained one is kept, whole or not at all; its parent exists. One that other settings or
        texts made, or that is damaged, is trained anew.
      sources: hold the training texts; None where no data are opened.

    Raises:
      UserError: no tokenizer is named, there are no texts to train one on, or, of several processes, one reads other
        texts than the first.
      RunFailure: a trained one cannot be kept.
    """
    model = config.model
    if model.train_tokenizer is None:
        if model.tokenizer is not None:
            directory = find_model_dir(model.tokenizer, key="model.tokenizer", revision=model.tokenizer_commit)
            return load_tokenizer(directory)
        if checkpoint is None:
            raise UserError(
                "model.tokenizer: expected a tokenizer directory, a hub id, or model.train_tokenizer without model.init"
            )
        return load_tokenizer(checkpoint.directory)
    if sources is None or not sources.can_train_tokenizer:
        raise UserError("model.train_tokenizer: expected data.train to learn the vocabulary from")
    made_from = {"settings": model.train_tokenizer.model_dump(mode="json"), "texts": sources.texts_digest()}
    if cache is not None and cache.exists():
        if (problem := _problem(cache, made_from)) is None:
            return load_tokenizer(cache)
        if not processes.is_first():
            raise UserError(
                f"data.train: what process {processes.process_index()} reads is not what the first process learned the "
                f"vocabulary from ({cache}: {problem}); give all processes the same files"
            )
        log.warning("%s: %s; the vocabulary is learned again", cache, problem)
    tokenizer = train_tokenizer(sources.texts(), model.train_tokenizer)
    log.info("trained a %s vocabulary of %d entries", model.train_tokenizer.type, tokenizer.vocab_size)
    if cache is not None:
        with explain_write_errors(cache), atomic_folder(cache) as folder:
            tokenizer.save(folder)
            files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
            write_sealed(folder / MADE_FROM, {**made_from, "files": files})
    return tokenizer


def _problem(cache: Path, made_from: dict[str, Any]) -> str | None:
    """Returns why a kept tokenizer is not the one that settings and texts would make; None if it is."""
    try:
        kept = read_sealed(cache / MADE_FROM)
        if kept.get("settings") != made_from["settings"]:
            return "it was learned with other settings"
        if kept.get("texts") != made_from["texts"]:
            return "it was learned from other texts"
        changed = [name for name, digest in kept["files"].items() if sha256(cache / name) != digest]
    except (OSError, ValueError) as error:
        return f"the tokenizer is incomplete or damaged ({error})"
    return f"{changed[0]} is not what was written: its SHA-256 differs" if changed else None
