"""Uploads an export to the hub: `jaxlm push`."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from jaxlm.errors import RunFailure, UserError
from jaxlm.hf.hub import find_model_dir
from jaxlm.run.run_dir import MODEL

_LOG_IN = "log in with 'hf auth login', or set HF_TOKEN to a token that may write"


def push(run: str, hub_id: str, *, private: bool = False, revision: str | None = None) -> str:
    """Uploads a run's `model/`, or a folder in HF format, to a repository of the hub; returns its address.

    Args:
      run: a run directory or an HF-format directory.
      hub_id: OWNER/NAME; the repository is made if there is none.
      private: of a repository that is made.
      revision: a branch, made if there is none; None: main.
    Raises:
      UserError: no export there, no token, or a repository that the hub refuses or the token may not write.
      RunFailure: the hub cannot be reached, or fails.
    """
    if not Path(run).expanduser().exists():
        raise UserError(f"push: no directory {run}; expected a run directory or a folder in HF format")
    folder = find_model_dir(run, key="push")
    if not (folder / "config.json").is_file():
        raise UserError(f"push: {folder} has no config.json; expected a run directory or a folder in HF format")
    import huggingface_hub
    from huggingface_hub import constants, utils

    with _in_words(hub_id):
        utils.validate_repo_id(hub_id)
        if hub_id.count("/") != 1:
            raise UserError(f"push: {hub_id!r}: expected OWNER/NAME")
        if constants.HF_HUB_OFFLINE:
            raise UserError("push: HF_HUB_OFFLINE is set, so that nothing can be uploaded; unset it")
        api = huggingface_hub.HfApi(library_name="jaxlm")
        if huggingface_hub.get_token() is None:
            raise UserError(f"push: the hub asks for a token; {_LOG_IN}")
        api.create_repo(hub_id, private=private or None, exist_ok=True)
        if revision is not None and revision != "main":
            api.create_branch(hub_id, branch=revision, exist_ok=True)
        found: Any = api.upload_folder(
            repo_id=hub_id, folder_path=folder, revision=revision, commit_message=f"Upload {_name(folder)}"
        )
    return str(found.commit_url or f"{api.endpoint}/{hub_id}")


def _name(folder: Path) -> str:
    """What the export is called: a run, or the folder itself."""
    return folder.absolute().parent.name if folder.name == MODEL else folder.absolute().name


@contextlib.contextmanager
def _in_words(hub_id: str) -> Generator[None]:
    """Says in words what the hub answers."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"push: {hub_id!r} is no hub id: {error}") from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"push: the hub asks for a token; {_LOG_IN}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(f"push: the token may not write {hub_id} (status {status}); {_LOG_IN}") from error
        if status == 404:
            raise UserError(f"push: the hub knows no {hub_id} that this token may write; {_LOG_IN}") from error
        if 400 <= status < 500:
            raise UserError(f"push: the hub refuses {hub_id}: {error.server_message or error}") from error
        raise RunFailure(f"push: the hub failed (status {status}); try again later") from error
    except RuntimeError as error:
        if not str(error).startswith("Error while uploading"):  # of huggingface_hub, whatever went wrong with a file
            raise
        raise RunFailure(
            f"push: {error} {error.__cause__ or ''}; give the same command again".replace(" ;", ";")
        ) from error
    except OSError as error:
        raise RunFailure(f"push: the hub cannot be reached ({type(error).__name__}: {error}); try again") from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):  # what huggingface_hub connects with
            raise
        raise RunFailure(f"push: the hub cannot be reached ({type(error).__name__}: {error}); try again") from error
