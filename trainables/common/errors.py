"""The one exception that means "the user's input is wrong", and phrases of its sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Bad input from the user: what is wrong, where, and what to do instead, in one sentence.

    Command lines print it without a traceback and exit with code 2, before anything is trained.
    """


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for the known names nearest to ``name``, or ``""`` when none is near."""
    near = difflib.get_close_matches(name, list(known), n=limit, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ""


def bounds(ge: Any = None, gt: Any = None, le: Any = None, lt: Any = None) -> str:
    """Return a range in words, such as ``"at least 0 and below 1"``; ``""`` without any bound."""
    words = {"at least": ge, "above": gt, "at most": le, "below": lt}
    return " and ".join(f"{word} {bound}" for word, bound in words.items() if bound is not None)
