"""A teacher behind an OpenAI-compatible server that gives log-probabilities, such as SGLang or vLLM.

It is asked through ``/v1/completions`` with ``echo`` and ``logprobs``, prompts given as token ids. A server that is
dead, slow or limits its rate is asked again with growing pauses; then one sentence says so, and what it said before is
in the cache. `started` runs a server's command and stops it again; ``python -m trainables.sad_student.serve`` is such a
server for any model of transformers.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from trainables.common.errors import InputError
from trainables.sad_student.loss import FLOOR
from trainables.sad_student.rollout import ACTION, TURN_TOKENS, ending_ids
from trainables.sad_student.teacher import Targets, fingerprint, shifted
from trainables.sad_student.tokens import Tokens, Vocabulary

# pauses between attempts, in seconds; a server may say how long to wait instead
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
# longest wait for one answer
TIMEOUT_S = 120.0
# requests under way at once
AT_ONCE = 8


class ServerTeacher:
    """A teacher behind a server; a `Teacher`, and a writer's model for roll-outs.

    Args:
        url: Ends in ``/v1``.
        vocabulary: Of the tokens; the server knows the tokenizer's own ids.
        model: Name of the model; None takes the only one that is served.
        pauses: Between attempts, in seconds.
    """

    def __init__(
        self, url: str, vocabulary: Vocabulary, model: str | None = None, pauses: Sequence[float] = PAUSES
    ) -> None:
        self.url, self.vocabulary, self.pauses, self.tokens = url.rstrip("/"), vocabulary, tuple(pauses), 0
        self.model = model or served_models(self.url, self.pauses)[0]
        kept = vocabulary.kept or range(len(vocabulary.tokenizer))
        self._place = {own: place for place, own in enumerate(kept)}
        self._own = list(kept)
        texts = vocabulary.tokenizer.batch_decode([[own] for own in self._own])
        self._of_text = dict(zip(reversed(texts), reversed(self._own), strict=True))
        self.fingerprint = fingerprint(self.url, self.model, vocabulary.kept)

    @property
    def player(self) -> ServerTeacher:
        """What `rollout.play` takes."""
        return self

    def writer(self, rows: int) -> ServerWriter:
        """Return what writes turns for a batch of rows."""
        return ServerWriter(self, rows)

    def judge(self, rows: Sequence[Tokens], top_k: int) -> list[Targets]:
        """Return what the server says of some trajectories; see `Teacher`."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(lambda row: self._judge(row, top_k), rows))
        self.tokens += sum(len(row.ids) for row in rows)
        return found

    def _judge(self, row: Tokens, top_k: int) -> Targets:
        body = {"prompt": [self._own[i] for i in row.ids], "max_tokens": 0, "echo": True, "logprobs": top_k}
        top = top_log_probabilities(self._complete(body), self.url)
        count = min(top_k, len(self._own))
        pairs = [self._named(some or {}, count) for some in top[1 : len(row.ids)]]
        ids, log_p = (np.array(part) for part in zip(*pairs, strict=True))
        return shifted(ids, log_p)

    def _named(self, some: dict[str, float], count: int) -> tuple[list[int], list[float]]:
        """Return exactly ``count`` tokens of the vocabulary; those of which nothing was said are next to impossible."""
        found: dict[int, float] = {}
        for text, value in sorted(some.items(), key=lambda pair: -pair[1]):
            mark = text.removeprefix("token_id:")
            own = int(mark) if mark != text and mark.isdigit() else self._of_text.get(text)
            if own in self._place:
                found.setdefault(self._place[own], value)
        fill = (place for place in range(len(self._own)) if place not in found)
        chosen = dict(list(found.items())[:count])
        while len(chosen) < count:
            chosen[next(fill)] = FLOOR
        return list(chosen), list(chosen.values())

    def write(self, ids: Sequence[int]) -> list[int]:
        """Return the tokens of the turn that the server writes after some tokens, its most probable ones."""
        body = {"prompt": [self._own[i] for i in ids], "max_tokens": TURN_TOKENS, "temperature": 0}
        text = str(self._complete(body)["text"])
        found = ACTION.search(text)
        written = self.vocabulary.encode(text[: found.end()] if found else text)[:TURN_TOKENS]
        self.tokens += len(written)
        # at least one token: an empty turn is one that ends at once
        return written or [ending_ids(self.vocabulary)[1]]

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = ask(f"{self.url}/completions", {"model": self.model, **body}, self.pauses)
        return dict(answer["choices"][0])


class ServerWriter:
    """`rollout.Writer` of a server: it sends the whole episode, and the server keeps what it wants of it.

    Args:
        teacher: The server.
        rows: Number of rows.
    """

    def __init__(self, teacher: ServerTeacher, rows: int) -> None:
        self.teacher = teacher
        self.pending: list[list[int]] = [[] for _ in range(rows)]
        self._read: list[list[int]] = [[] for _ in range(rows)]

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        self.pending, self._read = ([some[row] for row in rows] for some in (self.pending, self._read))

    def write(self, wanted: Sequence[bool]) -> list[list[int]]:
        """Return the tokens of a turn for each wanted row, none for the others."""
        for row, ids in enumerate(self.pending):
            self._read[row] += ids
        self.pending = [[] for _ in self.pending]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            chosen = [row for row, want in enumerate(wanted) if want]
            written = dict(zip(chosen, pool.map(lambda row: self.teacher.write(self._read[row]), chosen), strict=True))
        for row, ids in written.items():
            self._read[row] += ids
        return [written.get(row, []) for row in range(len(wanted))]


def served_models(url: str, pauses: Sequence[float] = PAUSES) -> list[str]:
    """Return the models of a server. Raises InputError where none answers."""
    found = [str(model["id"]) for model in ask(f"{url.rstrip('/')}/models", None, pauses)["data"]]
    if not found:
        raise InputError(f"The server at {url} serves no model; load one.")
    return found


def top_log_probabilities(choice: Mapping[str, Any], url: str) -> list[dict[str, float] | None]:
    """Return what a completion says of each token. Raises InputError where it says nothing."""
    top = (choice.get("logprobs") or {}).get("top_logprobs")
    if not top:
        raise InputError(
            f"The server at {url} gives no log-probabilities of a prompt; start one that does, such as SGLang or vLLM, "
            "or distil from the model in process, without --teacher-server."
        )
    return list(top)


def check_server(url: str, ids: Sequence[int]) -> None:
    """Ask a server once for the log-probabilities of some tokens.

    Raises:
        InputError: If it does not answer, or gives none.
    """
    (model, *_) = served_models(url, pauses=())
    body = {"model": model, "prompt": list(ids), "max_tokens": 0, "echo": True, "logprobs": 1}
    top_log_probabilities(ask(f"{url.rstrip('/')}/completions", body, ())["choices"][0], url)


def ask(url: str, body: dict[str, Any] | None, pauses: Sequence[float]) -> dict[str, Any]:
    """Return a server's answer, after as many attempts as there are pauses and one more.

    Raises:
        InputError: If it never answers, or refuses what it is asked.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    reason = ""
    for pause in (*pauses, None):
        wait = pause
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code}: {error.read(200).decode(errors='replace').strip()}"
            if error.code != 429 and error.code < 500:
                raise InputError(f"The teacher at {url} refuses what it is asked ({reason}).") from error
            asked = error.headers.get("Retry-After", "")
            wait = float(asked) if asked.isdigit() and pause is not None else pause
        except (OSError, ValueError) as error:
            reason = str(error)
        if wait is not None:
            time.sleep(wait)
    raise InputError(
        f"The teacher at {url} did not answer {len(pauses) + 1} times ({reason}); start it and run the same command "
        "again: what it said before is kept."
    )


@contextlib.contextmanager
def started(command: str, url: str, seconds: float = 300.0) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server's command until the ``with`` block ends; the block begins when the server lists its models.

    Raises:
        InputError: If the command ends, or nothing answers within ``seconds``.
    """
    process = subprocess.Popen(shlex.split(command))
    try:
        end = time.monotonic() + seconds
        while True:
            if process.poll() is not None:
                raise InputError(f"The server's command ended with code {process.returncode}: {command}.")
            with contextlib.suppress(InputError):
                served_models(url, pauses=())
                break
            if time.monotonic() > end:
                raise InputError(f"Nothing answered at {url} within {seconds:.0f} s of starting: {command}.")
            time.sleep(0.5)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
