"""The tokenizer and the checkpoint that a run starts from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.hf.hub import find_model_dir
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jaxlm.tokenizer.training import train_tokenizer

log = logging.getLogger("jaxlm")


def open_checkpoint(config: Config) -> HFCheckpoint | None:
    """What `model.init` names, its config.json read and checked before any data; None without it."""
    if config.model.init is None:
        return None
    checkpoint = HFCheckpoint(
        find_model_dir(config.model.init, key="model.init", revision=config.model.commit or config.model.revision)
    )
    checkpoint.model_config  # noqa: B018  an unsupported checkpoint is refused
    return checkpoint


def make_tokenizer(
    config: Config, checkpoint: HFCheckpoint | None, cache: Path | None, texts: Callable[[], Iterable[str]] | None
) -> Tokenizer:
    """Loads the tokenizer that a config names, or trains one.

    Args:
      cache: where a trained one is kept.
      texts: the training texts; None where the training split is not loaded.
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
    if cache is not None and cache.is_dir():
        return load_tokenizer(cache)
    if texts is None:
        raise UserError("model.train_tokenizer: expected data.train to learn the vocabulary from")
    tokenizer = train_tokenizer(texts(), model.train_tokenizer)
    log.info("trained a %s vocabulary of %d entries", model.train_tokenizer.type, tokenizer.vocab_size)
    if cache is not None:
        tokenizer.save(cache)
    return tokenizer
