"""Streams that hold nobody up: one that cannot be written any more is dropped, said once, and the work goes on.

A reader may close a pipe (``| head -1``), a terminal may be closed, a disk may be full. What is written afterwards goes
nowhere.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# those that have not been dropped
_LIVING: list[SteadyStream] = []


class SteadyStream:
    """A text stream whose errors are nobody's business.

    Args:
        stream: Where text goes.
        name: What the others call it when it is dropped.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        _LIVING.append(self)

    def write(self, text: str) -> int:
        """Write text, or drop it with the stream."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Bring out what was written."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def close(self) -> None:
        """Close the stream."""
        self.flush()
        if self in _LIVING:
            _LIVING.remove(self)
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: Exception) -> None:
        if isinstance(error, ValueError) and not self._stream.closed:
            # a text that the stream cannot encode
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            # under the stream: what it still holds, and what other code writes to it, goes there as well
            os.dup2(nowhere, self._stream.fileno())
        except (OSError, ValueError):
            self._stream = open(os.devnull, "w")  # noqa: SIM115
        finally:
            os.close(nowhere)
        if self in _LIVING:
            _LIVING.remove(self)
            _say(f"{self._name} cannot be written ({error}) and is dropped; the work goes on.\n")


def _say(line: str) -> None:
    """Write a line to every log, and to one stream that somebody may look at."""
    watched = [stream for stream in _LIVING if stream._name in ("stdout", "stderr")]
    for stream in [*watched[-1:], *(stream for stream in _LIVING if stream not in watched)]:
        stream.write(line)
        stream.flush()


@contextlib.contextmanager
def steady_streams() -> Iterator[None]:
    """Let ``sys.stdout`` and ``sys.stderr`` fail without harm, for the length of a ``with`` block."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # closed by who started this process; a file or a socket that got its number would be written to
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout = SteadyStream(sys.stdout or open(1, "w", closefd=False), "stdout")  # type: ignore[assignment]
    sys.stderr = SteadyStream(sys.stderr or open(2, "w", closefd=False), "stderr")  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            if stream in _LIVING:
                _LIVING.remove(stream)
        sys.stdout, sys.stderr = before
