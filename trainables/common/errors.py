"""The exceptions that mean "the user's input is wrong", and "what is around us is"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from the user: what is wrong, where, and what to do instead, in one sentence.

    Command lines print it without a traceback and exit with code 2, before anything is trained.
    """


class SurroundingsError(RuntimeError):
    """Something around a sweep is wrong, not the sweep: what, and what to do, in one sentence.

    Command lines print it without a traceback and exit with code 1.
    """


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for the known names nearest to ``name``, or ``""`` when none is near."""
    near = difflib.get_close_matches(name, list(known), n=limit, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
