"""What a sentence-transformers folder says beside its model: how token states become a vector, and what precedes texts.

Read and written: modules.json, the pooling module's config.json, sentence_bert_config.json and
config_sentence_transformers.json, as releases 2 to 6 of sentence-transformers have them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from jaxlm.errors import UserError
from jaxlm.tokenizer.saving import NO_LIMIT, saved_limit

MODULES = "modules.json"
POOLING = "1_Pooling"
FILES = (MODULES, "*_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")
"""What is fetched from a hub."""
KEY = "sentence_transformers"
"""Entry of a checkpoint's config under which tasks find a `SentenceModules`."""

Pooling = Literal["mean", "cls", "last_token"]

_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last_token"}
"""sentence-transformers' `pooling_mode` of each pooling."""
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The keys of release 5 and before, one for each pooling."""


@dataclass(frozen=True)
class SentenceModules:
    """The settings of a sentence-transformers folder.

    Attributes:
      pooling: which token states the vector is made of.
      normalize: vectors have length 1.
      prompts: by name, what is put before texts.
      default_prompt: the name of the prompt of texts that name none.
      max_length: most tokens of a text; None: as many as the model reads.
      lowercase: texts are read in lower case.
    """

    pooling: Pooling = "mean"
    normalize: bool = True
    prompts: Mapping[str, str] | None = None
    default_prompt: str | None = None
    max_length: int | None = None
    lowercase: bool = False

    def files(self, width: int) -> dict[str, str]:
        """Returns the files of a folder that says this, by name; all releases read them.

        Args:
          width: numbers of a vector.
        """
        kinds = ["Transformer", "Pooling", *(["Normalize"] if self.normalize else [])]
        modules = [
            {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}",
             "type": f"sentence_transformers.models.{kind}"}
            for i, kind in enumerate(kinds)
        ]  # fmt: skip
        mode = next(mode for mode, pooling in _POOLINGS.items() if pooling == self.pooling)
        flags = {key: name == mode for key, name in _FLAGS.items()}
        texts = {"max_seq_length": self.max_length, "do_lower_case": self.lowercase}
        prompts = {
            "prompts": dict(self.prompts or {}),
            "default_prompt_name": self.default_prompt,
            "similarity_fn_name": "cosine",
        }
        contents: dict[str, Any] = {
            MODULES: modules,
            f"{POOLING}/config.json": {"word_embedding_dimension": width, **flags, "include_prompt": True},
            "sentence_bert_config.json": texts,
            "config_sentence_transformers.json": prompts,
        }
        if self.normalize:
            contents["2_Normalize/config.json"] = {}
        return {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in contents.items()}


def has_sentence_modules(directory: Path) -> bool:
    """Whether a directory is a sentence-transformers folder."""
    return (directory / MODULES).is_file()


def read_sentence_modules(directory: Path) -> SentenceModules:
    """Reads a sentence-transformers folder.

    Raises:
      UserError: modules or poolings that are not supported, or a file that is not what it should be.
    """
    where = directory / MODULES
    modules = _read(where, list)
    kinds = [str(m.get("type", "")).rpartition(".")[2] if isinstance(m, dict) else "" for m in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise UserError(
            f"{where}: expected the modules Transformer, Pooling and, as the case may be, Normalize; found "
            f"{', '.join(kind or '?' for kind in kinds) or 'none'}"
        )
    if modules[0].get("path"):
        raise UserError(
            f"{where}: the model lies in {modules[0]['path']!r}, as in releases before 2; name that folder, and set "
            "task.pooling and task.normalize"
        )
    texts = _read(directory / "sentence_bert_config.json", dict, absent={})
    prompts = _read(directory / "config_sentence_transformers.json", dict, absent={})
    named, default = prompts.get("prompts") or {}, prompts.get("default_prompt_name")
    if not isinstance(named, dict) or not all(isinstance(prompt, str) for prompt in named.values()):
        raise UserError(f"{directory / 'config_sentence_transformers.json'}: prompts: expected texts by name")
    if default is not None and default not in named:
        raise UserError(
            f"{directory / 'config_sentence_transformers.json'}: default_prompt_name {default!r} is none of its prompts"
        )
    # From release 6 on, the tokenizer's own limit is the only one.
    length = texts.get("max_seq_length")
    if type(length) is not int or not 0 < length < NO_LIMIT:
        length = saved_limit(directory)
    return SentenceModules(
        pooling=_pooling(
            directory / str(modules[1].get("path", POOLING)) / "config.json", prompted=any(named.values())
        ),
        normalize=len(kinds) == 3,
        prompts={str(name): prompt for name, prompt in named.items() if prompt},
        default_prompt=default if default is not None and named[default] else None,
        max_length=length,
        lowercase=texts.get("do_lower_case") is True,
    )


def _pooling(path: Path, *, prompted: bool) -> Pooling:
    config = _read(path, dict)
    chosen = config.get("pooling_mode")
    if chosen is None:
        modes = [name for key, name in _FLAGS.items() if config.get(key)]
    else:
        modes = [str(mode) for mode in chosen] if isinstance(chosen, list) else [str(chosen)]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise UserError(
            f"{path}: pooling {' + '.join(modes) or 'none'} is not supported; expected one of {', '.join(_POOLINGS)}"
        )
    if prompted and config.get("include_prompt") is False:
        raise UserError(f"{path}: include_prompt=false is not supported: the tokens of prompts are pooled, too")
    return _POOLINGS[modes[0]]


def _read(path: Path, kind: type, absent: Any = None) -> Any:
    """The JSON value of a file, a list or an object as asked for."""
    if absent is not None and not path.is_file():
        return absent
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {MODULES} asks for it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, kind):
        raise UserError(f"{path}: expected {'a list' if kind is list else 'an object'}")
    return cast(Any, value)
