"""How a run's model writes: the section `generation` over the checkpoint's generation_config.json over defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.hf.generation_config import (
    FILE,
    KEYS,
    OF_THE_MODEL,
    read_generation_config,
    settings_file,
    warn_of_unsupported,
    write_generation_config,
)
from jaxlm.setup.model import eos_ids
from jaxlm.tasks.records import Generation
from jaxlm.tokenizer.tokenizer import Tokenizer

TOP_K = 50
"""Transformers draws from so many tokens unless told otherwise."""
_RECORD = {
    "eos_token_id": "eos_ids", "forced_bos_token_id": "forced_bos_id", "forced_eos_token_id": "forced_eos_id",
    "bad_words_ids": "bad_words", "stop_strings": "stop",
}  # fmt: skip
"""Name in a file -> field of `Generation`, where they differ."""


def make_generation(config: Config, tokenizer: Tokenizer, checkpoint: HFCheckpoint | None) -> Generation:
    """Returns the settings of a run; without a limit where nothing says one, so that the task may.

    Raises:
      UserError: a value of generation_config.json that does not fit, or a word that has no tokens.
    """
    section = config.generation
    given = {name: value for name in KEYS if (value := getattr(section, name)) is not None}
    writes = checkpoint is not None and checkpoint.family.init_cache is not None
    said = read_generation_config(checkpoint.directory) if checkpoint is not None and writes else {}
    if checkpoint is not None and writes:
        warn_of_unsupported(checkpoint.directory)
    if checkpoint is not None and not (checkpoint.directory / FILE).is_file():
        said.setdefault("forced_eos_token_id", getattr(checkpoint.model_config, "forced_eos_id", None))  # BART's
    for name in ("eos_token_id", *OF_THE_MODEL):  # the model's config has them
        said.pop(name, None)
    for one, other in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if one in given or other in given:  # what is given replaces the other way to say it, too
            said = {name: value for name, value in said.items() if name not in (one, other)}
    values = {_RECORD.get(name, name): _frozen(value) for name, value in (said | given).items()}
    values.setdefault("max_new_tokens", None)
    words = tuple(values.get("bad_words", ()))
    words += tuple(way for text in section.bad_words or () for way in _ways_to_write(text, tokenizer))
    own = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    ends = values.get("eos_ids", tuple(sorted({*eos_ids(checkpoint), *own})))
    values |= {
        "eos_ids": _several(ends),
        "bad_words": words,
        "stop": _several(values.get("stop", ())),
        "tokenizer": tokenizer,
        "seed": config.seed if section.seed is None else section.seed,
        "forced_eos_id": next(iter(_several(values.get("forced_eos_id", ()))), None),
    }
    return Generation(**{"top_k": TOP_K, **values})


@contextmanager
def file_named(config: Config, checkpoint: HFCheckpoint | None) -> Iterator[None]:
    """Names the checkpoint's file in errors about a setting that it says and the section `generation` does not."""
    try:
        yield
    except UserError as error:
        found = re.match(r"generation\.(\w+)", str(error))
        if found is None or checkpoint is None:
            raise
        name = {"bad_words": "bad_words_ids"}.get(found[1], found[1])
        if getattr(config.generation, name, None) is not None or name not in read_generation_config(
            checkpoint.directory
        ):
            raise
        raise UserError(
            f"{settings_file(checkpoint.directory)}: {error}; generation.{name}=... replaces what the file says"
        ) from error


def generation_json(settings: Generation, model: Mapping[str, Any]) -> str:
    """Returns generation_config.json of an exported model.

    Args:
      model: its config.json.
    """
    default = Generation(max_new_tokens=None, top_k=TOP_K)
    said = {}
    for name in KEYS:
        field = _RECORD.get(name, name)
        value = getattr(settings, field)
        if value != getattr(default, field) and value is not None:
            said[name] = value
    if not settings.do_sample:  # Transformers warns of settings that nothing reads
        said = {name: value for name, value in said.items() if name not in ("temperature", "top_k", "top_p", "min_p")}
    if settings.num_beams == 1:
        said = {name: value for name, value in said.items() if name not in ("length_penalty", "early_stopping")}
    ends = settings.eos_ids
    said["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends) or None
    return write_generation_config(said, model)


def _ways_to_write(text: str, tokenizer: Tokenizer) -> Sequence[tuple[int, ...]]:
    """The tokens of a text at the beginning of a word and inside one.

    Raises:
      UserError: it has none.
    """
    encodings = tokenizer.encode([text, f" {text}"], special_tokens=False)
    ways = dict.fromkeys(tuple(map(int, part.ids)) for [part] in encodings)
    if found := [way for way in ways if way]:
        return found
    raise UserError(f"generation.bad_words: {text!r} has no token; leave it out")


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
