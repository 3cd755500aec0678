"""From what the user calls a model to a local HF-format directory: a path, a run directory, or a hub id."""

from __future__ import annotations

import contextlib
from pathlib import Path

from jaxlm.data import sentence_modules
from jaxlm.errors import RunFailure, UserError, nearest
from jaxlm.local_paths import check_local, in_nearest_folder, in_usual_folder, missing

# What jaxlm reads; nothing that would have to be unpickled is ever fetched.
FILES = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors",
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "adapter_config.json", "adapter_model.safetensors", "README.md",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
    *sentence_modules.FILES,
)  # fmt: skip


_OURS = ("runs", "models", "checkpoints", "output", "outputs", "data")
"""What people call folders of models, and no owner of the hub is called."""


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
        if runs := sorted(file.parents[1].name for file in path.glob("*-*/model/config.json")):
            raise UserError(f"{key}: {name} holds several runs; expected one of them, such as {path / runs[0]}")
        raise UserError(
            f"{key}: {name} is a run without an exported model; expected {path / 'model'}: finish the run first"
        )
    if path.exists():
        raise UserError(f"{key}: {name} is a file; expected a directory with config.json and model.safetensors")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"{key}: no directory {name}; expected an HF-format directory, a run directory or a hub id"
            f"{missing(path, folders=True)}"
        )
    if revision is None:
        _check_no_mistyped_path(name, path, key)
    return _download(name, key, revision)


def _check_no_mistyped_path(name: str, path: Path, key: str) -> None:
    """Raises UserError for what is rather a path than a hub id: its folder, or one of nearly its name, is here, or it
    begins as paths of models do."""
    import huggingface_hub

    near = [other for other in path.parent.glob("*") if other.is_dir() and nearest(path.name, [other.name])]
    folder = path.parent.is_dir() and path.parent != Path() or path.parent.name in _OURS
    if not near and not folder and in_usual_folder(path) is None and in_nearest_folder(path, folders=True) is None:
        return
    with contextlib.suppress(ValueError):  # what is no hub id
        if huggingface_hub.try_to_load_from_cache(name, "config.json") is not None:
            return
    raise UserError(
        f"{key}: no directory {name}{missing(path, folders=True)}; a repository of the hub by this name is read with "
        "model.revision=main"
    )


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
            f"{key}: {name!r} is not a directory here (in {Path.cwd()}), and the hub could not be reached to look for "
            f"it there ({type(error).__name__}); give a local directory, or run once with network access to fill the "
            "cache"
        ) from error
