"""From what the user calls a model to a local HF-format directory: a path, a run directory, or a hub id."""

from __future__ import annotations

from pathlib import Path

from jaxlm.errors import RunFailure, UserError
from jaxlm.local_paths import check_local

# What jaxlm reads; nothing that would have to be unpickled is ever fetched.
FILES = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors",
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
)  # fmt: skip


def find_model_dir(name: str, *, key: str, revision: str | None = None) -> Path:
    """Returns the directory of a model.

    Args:
      name: an HF-format directory, a run directory (its `model/` is taken), or a hub id, which is read through
        huggingface_hub's cache and works offline once cached.
      key: the config key or option that `name` came from, for errors.
    Raises:
      UserError: no such directory, run, or hub repository.
      RunFailure: the hub cannot be reached and the repository is not in the cache.
    """
    check_local(name, key)
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file() or not (path / "config.yaml").is_file():
            return path
        if (path / "model" / "config.json").is_file():
            return path / "model"
        raise UserError(
            f"{key}: {name} is a run without an exported model; expected {path / 'model'}: finish the run first"
        )
    if path.exists():
        raise UserError(f"{key}: {name} is a file; expected a directory with config.json and model.safetensors")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{key}: no directory {name}; expected an HF-format directory, a run directory or a hub id")
    return _download(name, key, revision)


def find_commit(name: str, *, key: str, revision: str | None = None) -> str | None:
    """Returns the commit that a hub id stands for now; None for a directory of this machine.

    Raises:
      As `find_model_dir`.
    """
    if Path(name).expanduser().exists():
        return None
    folder = find_model_dir(name, key=key, revision=revision)
    return folder.name if folder.parent.name == "snapshots" else None


def _download(name: str, key: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except errors.HFValidationError as error:
        raise UserError(f"{key}: {name!r} is neither a directory nor a valid hub id: {error}") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UserError(
            f"{key}: {name!r} is neither a directory nor a hub repository that can be read"
            f"{f' at revision {revision!r}' if revision else ''}; "
            "for a gated or private one, log in with 'hf auth login'"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise RunFailure(
            f"{key}: {name!r} is not a directory here, and the hub could not be reached to look for it there "
            f"({type(error).__name__}); give a local directory, or run once with network access to fill the cache"
        ) from error
