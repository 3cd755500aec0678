"""What a tokenizer writes beside its tokenizer.json, so that Transformers batches and cuts texts as the model needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxlm.errors import UserError
from jaxlm.tokenizer.added_tokens import ROLES

NO_LIMIT = 1_000_000
"""From here on a `model_max_length` or a number of positions is no limit that is meant."""

# Keys of tokenizer_config.json that the saved tokenizer.json answers, or that name files of the machine it came from.
SUPERSEDED = (
    "add_bos_token", "add_eos_token", "added_tokens_decoder", "auto_map", "extra_ids", "legacy", "name_or_path",
    "sp_model_kwargs", "special_tokens_map_file", "tokenizer_file", "vocab_file",
)  # fmt: skip


@dataclass(frozen=True)
class ModelSide:
    """What a model says about the tokenizer that is exported beside it.

    Attributes:
      pad_id: fills batches where the tokenizer has no padding token; None: its EOS or <unk> does.
      positions: most tokens that the model reads.
      trained_length: most tokens of the texts that it was trained on.
      padding_side: where the tokenizer's own files say nothing.
    """

    pad_id: int | None
    positions: int
    trained_length: int
    padding_side: Literal["left", "right"]


def saved_config(
    config: Mapping[str, Any], roles: Mapping[str, str], inputs: list[str], model: ModelSide | None
) -> dict[str, Any]:
    """Returns the contents of tokenizer_config.json.

    The class named is the generic one, so that every version of Transformers runs tokenizer.json as it stands; under a
    class of its own, Transformers 5 would rebuild the rules, for Llama with other ids for runs of spaces.

    Args:
      config: that of the directory the tokenizer came from.
      roles: "pad_token" and the like -> token.
      inputs: the arrays that the model reads.
      model: that of an export; None: the tokenizer is saved by itself.
    """
    names = {f"{role}_token" for role in ROLES}.union(SUPERSEDED)
    kept = {key: value for key, value in config.items() if key not in names}
    written = {"model_input_names": inputs, **kept, **roles, "tokenizer_class": "PreTrainedTokenizerFast"}
    if model is None:
        return written
    given = config.get("model_max_length")
    if given is not None and given < NO_LIMIT:
        longest = min(model.positions, max(int(given), model.trained_length))
    else:
        longest = model.positions if model.positions < NO_LIMIT else model.trained_length
    return {**written, "model_max_length": longest, "padding_side": config.get("padding_side") or model.padding_side}


def saved_limit(directory: Path) -> int | None:
    """Returns the most tokens of a text by a directory's tokenizer_config.json, as Transformers cuts; None: no limit.

    Raises:
      UserError: the file cannot be read as JSON.
    """
    path = directory / "tokenizer_config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    limit = said.get("model_max_length") if isinstance(said, dict) else None
    return limit if type(limit) is int and 0 < limit < NO_LIMIT else None
