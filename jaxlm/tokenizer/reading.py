"""Text and JSON files of a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; {} where there is no such file.

    Raises:
      UserError: not UTF-8, not JSON, or no object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; found {type(value).__name__}")
    return value


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file.

    Raises:
      UserError: it is not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; tokenizer files are UTF-8 text") from error
