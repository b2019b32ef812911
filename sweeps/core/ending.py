"""How a command ends: with an exit code, and where something went wrong with one sentence that says what to do.

What is wrong is bad input, a stop that was asked for, an error of the surroundings (a full disk, no memory, a cluster
that is gone), or a defect, which keeps its traceback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from sweeps.monitoring.streams import steady_streams
from trainables.common.environment import keep_local_addresses_from_proxies
from trainables.common.errors import InputError, SurroundingsError

# exit codes: 0 all good, 1 something failed, 2 bad input, 130 interrupted
FAILED, REFUSED, INTERRUPTED = 1, 2, 130


@dataclass(frozen=True)
class Trouble:
    """A kind of error of the surroundings.

    Attributes:
        sentence: What is wrong and what to do; ``{error}`` is the error's own line, ``{limit}`` Ray's share of memory.
        marks: What such an error says, in this process or in another one from which it comes as text.
        everybodys: Whether every other trial meets it as well, so that it ends the sweep and is no trial's failure.
    """

    sentence: str
    marks: tuple[str, ...]
    everybodys: bool = False


TROUBLES = (
    # its message holds much else, so it is looked for first
    Trouble(
        "Memory is nearly used up, so Ray ended a process: train fewer at once (--slots, --num-gpus, "
        "--workers-per-trial), lower batch_size, end what else takes memory, or raise RAY_memory_usage_threshold "
        "({limit}).",
        ("node running low on memory", "ray.exceptions.OutOfMemoryError"),
    ),
    Trouble(
        "There is not enough memory ({error}): train fewer at once (--slots, --num-gpus, --workers-per-trial) or lower "
        "batch_size.",
        ("MemoryError", "Cannot allocate memory", "can't allocate memory", "CUDA out of memory", "bad_alloc"),
    ),
    Trouble(
        "A disk is full ({error}): make room, or choose another --results-dir or RAY_TMPDIR.",
        ("No space left on device", "Disk quota exceeded", "OutOfDiskError"),
        everybodys=True,
    ),
    Trouble(
        "A folder cannot be written ({error}): see to its permissions, or choose another --results-dir.",
        ("Read-only file system", "Permission denied", "Stale file handle", "Input/output error"),
    ),
    Trouble("Too many files are open ({error}): raise the limit with 'ulimit -n 65536'.", ("Too many open files",)),
    Trouble(
        "The results cannot be reached ({error}): see to the network and the credentials.",
        ("AWS Error", "NETWORK_CONNECTION", "Name or service not known", "Connection timed out"),
    ),
    Trouble(
        "Ray did not come up within half a minute ({error}): the machine is busy or slow; end what else computes.",
        ("timed out during startup",),
    ),
    Trouble(
        "Ray's cluster is gone ({error}): see to its machines, or to who ended it.",
        ("died because its node has died", "Failed to connect to GCS", "RaySystemError", "raylet died", "RpcError: "),
    ),
)


class RunEndedError(Exception):
    """A run that ends before all is done, with a sentence for its user and an exit code."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


def run_main(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Call ``main(argv)`` and leave the program with its exit code.

    An `InputError` becomes one sentence on stderr and exit code 2, an error of the surroundings one and exit code 1, a
    signal exit code 130; any other exception is a defect and keeps its traceback.
    """
    keep_local_addresses_from_proxies()
    with steady_streams():
        try:
            with _signals_interrupt():
                code = main(argv)
        except InputError as error:
            _say(f"error: {error}")
            code = REFUSED
        except RunEndedError as end:
            _say(str(end))
            code = end.code
        except KeyboardInterrupt:
            _say("interrupted")
            code = INTERRUPTED
        except Exception as error:
            sentence = explained(error)
            if sentence is None:
                raise
            _say(f"error: {sentence}")
            code = FAILED
    sys.exit(code or 0)


@contextlib.contextmanager
def explaining(again: str) -> Iterator[None]:
    """Turn what ends a run into `RunEndedError`: errors of the surroundings, and a signal that cannot wait.

    Args:
        again: How to go on, for the end of the sentence.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise RunEndedError(f"Interrupted: {again}.", INTERRUPTED) from error
    except InputError:
        raise
    except Exception as error:
        sentence = explained(error)
        if sentence is None:
            raise
        raise RunEndedError(f"error: {sentence} What is done is stored; then {again}.", FAILED) from error


def explained(error: BaseException) -> str | None:
    """Return what is wrong with the surroundings, and what to do, in a sentence; None for any other error."""
    for one in _chain(error):
        name = f"{type(one).__module__}.{type(one).__name__}".removeprefix("builtins.")
        found = trouble_in(f"{name}: {one}" if str(one) else name)
        if found:
            return found[0]
    return next((str(one) for one in _chain(error) if isinstance(one, SurroundingsError)), None)


def trouble_in(text: str) -> tuple[str, Trouble] | None:
    """Return the sentence and the kind of an error that came as text, a traceback perhaps; None for any other."""
    for trouble in TROUBLES:
        for line in text.splitlines():
            if any(mark in line for mark in trouble.marks):
                limit = os.environ.get("RAY_memory_usage_threshold", "0.95")
                return trouble.sentence.format(error=" ".join(line.split())[:200], limit=limit), trouble
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        cause = getattr(error, "cause", None)
        if isinstance(cause, BaseException):
            yield from _chain(cause)
        error = error.__cause__ or error.__context__


def _say(text: str) -> None:
    print(" ".join(text.split()), file=sys.stderr)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP interrupt as Ctrl-C does, until a sweep handles them itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # nohup has SIGHUP ignored
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
