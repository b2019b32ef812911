"""A teacher behind a real server: its answers, through a kill and a new start, and refusals as sentences."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainables.common.tiny_package import installed
from trainables.common.errors import InputError
from trainables.sad_student.data import Material
from trainables.sad_student.rollout import play
from trainables.sad_student.server import ServerTeacher, ask, check_server, served_models, started
from trainables.sad_student.teacher import judged

pytestmark = installed("smollm2")


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def serve(teacher: str, port: int) -> str:
    return f"{sys.executable} -m trainables.sad_student.serve --teacher {teacher} --port {port}"


@pytest.mark.slow
def test_a_server_is_distilled_from_killed_and_started_again(
    tiny_teacher: str, material: Callable[..., Material], tmp_path: Path
) -> None:
    one, port = material(), free_port()
    url = f"http://127.0.0.1:{port}/v1"
    with started(serve(tiny_teacher, port), url) as process:
        teacher = ServerTeacher(url, one.vocabulary, pauses=(0.5,) * 240)
        found = judged(teacher, one.train[:3], 8, tmp_path)
        whole = one.teacher.judge(one.train[:3], len(one.vocabulary))
        for ours, theirs in zip(found, whole, strict=True):
            for position in range(1, len(ours.ids)):
                exact = dict(zip(theirs.ids[position].tolist(), theirs.log_p[position].tolist(), strict=True))
                # the server's model is not cut: what its other tokens have is missing from all of them
                known = [
                    (i, p) for i, p in zip(ours.ids[position].tolist(), ours.log_p[position], strict=True) if p > -29
                ]
                gaps = [exact[i] - float(p) for i, p in known]
                assert np.ptp(gaps or [0.0]) < 0.1
        assert teacher.tokens == sum(len(row.ids) for row in one.train[:3])
        problem = one.validation[0]
        (episode,) = play({problem.name: problem.environment()}, {"teacher": teacher.player}, one.vocabulary)
        assert episode.over and set(episode.writers) == {"", "teacher"}
        process.kill()
        process.wait()
        # what it said is kept: nobody is asked
        again = judged(teacher, one.train[:3], 8, tmp_path)
        assert all(np.array_equal(a.log_p, b.log_p) for a, b in zip(found, again, strict=True))
        # and new questions wait for the next start
        late: list[subprocess.Popen[bytes]] = []
        timer = threading.Timer(0.5, lambda: late.append(subprocess.Popen(serve(tiny_teacher, port).split())))
        timer.start()
        try:
            assert len(teacher.judge(one.train[3:4], 8)) == 1
        finally:
            timer.join()
            late[0].kill()
            late[0].wait()


class _Answers(BaseHTTPRequestHandler):
    """Answers what the test put into ``answers`` of the server: a status, headers and a body each time."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answers: list[tuple[int, dict[str, str], Any]] = self.server.answers  # type: ignore[attr-defined]
        code, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    servers: list[HTTPServer] = []

    def make(*answers: tuple[int, dict[str, str], Any]) -> str:
        server = HTTPServer(("127.0.0.1", 0), _Answers)
        server.answers = list(answers)  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_busy_server_is_asked_again_and_its_pause_kept(answering: Callable[..., str]) -> None:
    url = answering((429, {"Retry-After": "1"}, {}), (503, {}, {}), (200, {}, {"data": []}))
    begun = time.monotonic()
    assert ask(url, {}, pauses=(0.01, 0.01)) == {"data": []}
    assert time.monotonic() - begun >= 1.0


def test_refusals_and_silence_are_one_sentence(
    answering: Callable[..., str], material: Callable[..., Material]
) -> None:
    with pytest.raises(InputError, match="refuses what it is asked .HTTP 404"):
        ask(answering((404, {}, {})), {}, pauses=(9.0,))
    with pytest.raises(InputError, match="did not answer 3 times .HTTP 500.* run the same command again"):
        ask(answering((500, {}, {})), {}, pauses=(0.01, 0.01))
    with pytest.raises(InputError, match="did not answer 1 times"):
        served_models(f"http://127.0.0.1:{free_port()}/v1", pauses=())
    # what servers without log-probabilities say, transformers' own among them
    one = material()
    mute = ServerTeacher(answering((200, {}, {"choices": [{"text": "", "logprobs": None}]})), one.vocabulary, model="m")
    with pytest.raises(InputError, match="gives no log-probabilities of a prompt; start one that does"):
        mute.judge(one.train[:1], 4)
    with pytest.raises(InputError, match="gives no log-probabilities of a prompt"):
        url = answering((200, {}, {"data": [{"id": "m"}]}), (200, {}, {"choices": [{"text": "", "logprobs": None}]}))
        check_server(url, [1, 2])
    with pytest.raises(InputError, match="The server's command ended with code 3"):
        with started(f"{sys.executable} -c 'raise SystemExit(3)'", "http://127.0.0.1:9/v1"):
            pass
