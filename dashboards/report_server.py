"""Serves a report that stays up to date while a sweep runs: `dashboards/report.py --watch`.

The page asks for ``data.json`` every few seconds. Data is read again only when the files of a run changed, so that a
page left open costs next to nothing. It listens on this machine alone; from elsewhere, forward the port with SSH.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow.fs as pafs

from sweeps.store.schema import KEYS
from sweeps.store.store import ResultsStore
from trainables.common.errors import InputError

HOST = "127.0.0.1"


class ReportServer(ThreadingHTTPServer):
    """An HTTP server with two resources: the page at ``/`` and its data at ``/data.json``, with an ETag.

    Args:
        stores: Runs that are watched.
        content: Reads them and returns the page's data.
        page: Turns that into HTML.
        port: Port on this machine, 0 for any that is free.

    Raises:
        OSError: If the port is taken.
    """

    daemon_threads = True

    def __init__(
        self,
        stores: Sequence[ResultsStore],
        content: Callable[[], dict[str, Any]],
        page: Callable[[dict[str, Any]], str],
        port: int,
    ) -> None:
        super().__init__((HOST, port), _Handler)
        self._stores, self._content, self.page = stores, content, page
        self._lock = threading.Lock()
        self._tag, self._data = "", dict[str, Any]()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    def current(self) -> tuple[str, dict[str, Any]]:
        """Return a tag of the runs' files as they are now, and the data read from them."""
        with self._lock:
            tag = signature(self._stores)
            if tag != self._tag:
                self._data = self._content()
                # a file may have come in between: then the next call reads again
                self._tag = tag
            return self._tag, self._data


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer

    def do_GET(self) -> None:
        if self.path not in ("/", "/data.json"):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        # a page from elsewhere whose name was made to point here may not read results
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in (HOST, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN, "Open the report as localhost or 127.0.0.1.")
            return
        try:
            tag, data = self.server.current()
        except (InputError, OSError) as error:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))
            return
        tag = f'"{tag}"'
        if self.path == "/data.json" and self.headers.get("If-None-Match") == tag:
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.end_headers()
            return
        html = self.path == "/"
        body = (self.server.page(data) if html else json.dumps(data, allow_nan=False)).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8" if html else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the page asks every few seconds."""


def signature(stores: Sequence[ResultsStore]) -> str:
    """Return a short text that changes when any file that the report reads changes."""
    digest = hashlib.sha256()
    for store in stores:
        for kind in KEYS:
            folder = store.folder.sub(kind)
            for info in folder.fs.get_file_info(pafs.FileSelector(folder.root, allow_not_found=True)):
                digest.update(f"{info.path} {info.size} {info.mtime_ns}\n".encode())
        digest.update(store.folder.read("run.json") or b"")
    return digest.hexdigest()[:16]


def serve(
    stores: Sequence[ResultsStore],
    content: Callable[[], dict[str, Any]],
    page: Callable[[dict[str, Any]], str],
    port: int,
) -> int:
    """Serve until Ctrl-C; return the exit code. Raises InputError if the port cannot be had."""
    try:
        server = ReportServer(stores, content, page, port)
    except (OSError, OverflowError) as error:
        raise InputError(f"--port {port} cannot be used ({error}); give another one, or 0 for any.") from error
    with server:
        print(f"The report is at {server.url} (Ctrl-C ends it).", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
