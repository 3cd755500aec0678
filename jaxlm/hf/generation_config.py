"""generation_config.json: what a checkpoint says of how its model writes."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError

log = logging.getLogger("jaxlm")

FILE = "generation_config.json"


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_ids(value: Any) -> bool:
    return _is_count(value) or isinstance(value, list) and all(map(_is_count, value))


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, list) and word and _is_ids(word) for word in value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or isinstance(value, list) and all(isinstance(text, str) for text in value)


_COUNT, _NUMBER = (_is_count, "a whole number of 0 or more"), (_is_number, "a number")
_FLAG = (lambda value: type(value) is bool, "true or false")
KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": _COUNT, "max_length": _COUNT, "min_new_tokens": _COUNT, "min_length": _COUNT,
    "do_sample": _FLAG, "temperature": _NUMBER, "top_k": _COUNT, "top_p": _NUMBER, "min_p": _NUMBER,
    "num_beams": _COUNT, "num_return_sequences": _COUNT, "length_penalty": _NUMBER,
    "early_stopping": (lambda value: type(value) is bool or value == "never", "true, false or never"),
    "no_repeat_ngram_size": _COUNT, "repetition_penalty": _NUMBER,
    "bad_words_ids": (_is_words, "a list of lists of token ids"),
    "stop_strings": (_is_texts, "a string or a list of strings"),
    "eos_token_id": (_is_ids, "a token id or a list of them"),
    "forced_bos_token_id": _COUNT, "forced_eos_token_id": (_is_ids, "a token id"),
}  # fmt: skip
"""Settings that are read: what fits, and that in words."""
OF_THE_MODEL = {"decoder_start_token_id": _COUNT}
"""Further ids that are read, which the model's config has."""
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "typical_p": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "top_h": (), "sequence_bias": (),
    "encoder_repetition_penalty": (1.0,), "encoder_no_repeat_ngram_size": (0,), "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],), "exponential_decay_length_penalty": (), "num_beam_groups": (1,),
    "diversity_penalty": (0.0,), "penalty_alpha": (0.0,), "guidance_scale": (1.0, 1), "renormalize_logits": (False,),
    "watermarking_config": (), "constraints": (), "force_words_ids": (), "forced_decoder_ids": ([],), "max_time": (),
    "token_healing": (False,), "dola_layers": (),
}  # fmt: skip
"""Settings that change what is written and that jaxlm has not, with the values that change nothing."""


def read_generation_config(directory: Path) -> dict[str, Any]:
    """Returns the settings of `KEYS` and `OF_THE_MODEL` that generation_config.json names; without that file, those in
    config.json.

    Raises:
      UserError: the file is no JSON object, or a value does not fit.
    """
    path, said = _read(directory)
    settings = {}
    for name, (fits, wanted) in (KEYS | OF_THE_MODEL).items():
        value = said.get(name)
        if value is None or value == []:
            continue
        if not fits(value):
            raise UserError(f"{path}: {name}: expected {wanted}, found {json.dumps(value):.60}")
        settings[name] = value
    return settings


def warn_of_unsupported(directory: Path) -> None:
    """Names settings that change what is written and that jaxlm has not.

    Raises:
      UserError: the file is no JSON object.
    """
    path, said = _read(directory)
    for name, idle in UNSUPPORTED.items():
        if said.get(name) is not None and said[name] not in idle:
            log.warning("%s: %s=%s is not supported, and is left out", path, name, json.dumps(said[name]))


def settings_file(directory: Path) -> Path | None:
    """Returns the file that says how a checkpoint's model writes; None: there is none."""
    return next((path for name in (FILE, "config.json") if (path := directory / name).is_file()), None)


def _read(directory: Path) -> tuple[Path | None, dict[str, Any]]:
    path = settings_file(directory)
    if path is None:
        return None, {}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected a JSON object: {error}") from error
    if not isinstance(said, dict):
        raise UserError(f"{path}: expected a JSON object, found {json.dumps(said):.60}")
    return path, said


def write_generation_config(settings: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Returns the text of generation_config.json.

    Args:
      settings: values of `KEYS`; those that are None are left out.
      model: config.json, whose ids of special tokens are repeated.
    """
    ids = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    said = {name: model[name] for name in ids if model.get(name) is not None}
    said |= {name: value for name, value in settings.items() if value is not None}
    return json.dumps(said, indent=2, ensure_ascii=False) + "\n"
