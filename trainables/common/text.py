"""Text and JSON that users hand in: whatever is wrong with it becomes one sentence that names where it is from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.common.errors import InputError


def read_text(path: Path, what: str) -> str:
    """Return the content of a UTF-8 file, without the byte-order mark that some editors write first.

    Args:
        path: The file; ``~`` is the home folder.
        what: Names the file in the message.

    Raises:
        InputError: If it cannot be read or is not UTF-8.
    """
    try:
        return path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise InputError(f"{what} cannot be read: {error}.") from error


def parse_json(text: str | bytes, what: str) -> Any:
    """Return what JSON says.

    Args:
        text: The JSON; bytes are UTF-8, with or without a byte-order mark.
        what: Names its place in the message.

    Raises:
        InputError: If it is not valid, or nested or long beyond what Python reads.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{what} is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise InputError(f"{what} is not valid JSON: it is nested too deeply.") from error
    except ValueError as error:
        raise InputError(f"{what} is not valid JSON: it holds a number of thousands of digits.") from error


def json_kind(value: Any) -> str:
    """Return what a JSON value is, as in "an object with 'train', 'test'"."""
    if isinstance(value, Mapping):
        names = ", ".join(repr(name) for name in list(value)[:3])
        return f"an object with {names}{', ...' if len(value) > 3 else ''}" if value else "an empty object"
    kinds = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")
