"""A real HTTP server on this machine for tests of whatever speaks to the network, with faults to order.

A subclass says what it answers (`reply`); ranges, ETags, slowness, cuts and refusals are the same for all.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """What a client asked. `headers` are those of http.client: names in any case. `body` is what it sent along."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Any
    body: bytes = b""

    @property
    def token(self) -> str | None:
        """The bearer token that came along."""
        said = self.headers.get("Authorization", "")
        return said.removeprefix("Bearer ") if said.startswith("Bearer ") else None


@dataclass(frozen=True)
class Reply:
    """What is answered. With `ranges`, a request for a part of the body gets that part, as from a file server."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    ranges: bool = False


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path matches the expression `path`.

    status: answered instead of the real reply, with these headers and body. cut_after: bytes of the body after which
    the connection breaks. seconds: how long the body is held back before each `slice_bytes` of it. hang_up_after: bytes
    of what is being sent here after which the connection breaks, without an answer.
    """

    path: str = ""
    times: int = 1
    method: str = "GET"
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    seconds: float = 0.0
    slice_bytes: int = 1 << 30
    hang_up_after: int | None = None


class LocalServer:
    """A server for the length of a `with`. It keeps every request that it got in `requests`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        self._http: ThreadingHTTPServer | None = None

    def reply(self, request: Request) -> Reply:
        """The answer to a request; a subclass's whole business."""
        raise NotImplementedError

    @property
    def port(self) -> int:
        assert self._http is not None, "the server runs inside its `with`"
        return self._http.server_address[1]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def elsewhere(self) -> str:
        """The same server under another host name, for redirects that must not carry a token along."""
        return f"http://localhost:{self.port}"

    def asked(self, path: str, method: str = "GET") -> list[Request]:
        """The requests so far whose path matches the expression."""
        return [r for r in self.requests if r.method == method and re.search(path, r.path)]

    def __enter__(self) -> LocalServer:
        self._http = _Quiet(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._http is not None
        self._http.shutdown()
        self._http.server_close()

    def _fault_for(self, method: str, path: str) -> Fault:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return Fault()


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave in the middle; the tests' output is no place to tell of it."""


def _handler(server: LocalServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            fault = server._fault_for(self.command, unquote(parts.path))
            announced = int(self.headers.get("Content-Length") or 0)
            sent = self.rfile.read(announced if fault.hang_up_after is None else min(announced, fault.hang_up_after))
            request = Request(self.command, unquote(parts.path), parse_qs(parts.query), self.headers, sent)
            server.requests.append(request)
            if fault.hang_up_after is not None:
                self.close_connection = True
                return
            if fault.status is not None:
                reply = Reply(fault.status, fault.body, fault.headers)
            else:
                reply = _part(server.reply(request), self.headers.get("Range"), self.headers.get("If-Range"))
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if not any(name.lower() == "content-length" for name in reply.headers):
                self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if self.command != "HEAD":
                self._send(reply.body, fault)

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def _send(self, body: bytes, fault: Fault) -> None:
            whole = body if fault.cut_after is None else body[: fault.cut_after]
            for start in range(0, len(whole), fault.slice_bytes):
                time.sleep(fault.seconds)
                try:
                    self.wfile.write(whole[start : start + fault.slice_bytes])
                    self.wfile.flush()
                except OSError:  # whoever asked has left
                    self.close_connection = True
                    return
            if fault.cut_after is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
            pass

    return Handler


def _part(reply: Reply, wanted: str | None, if_range: str | None) -> Reply:
    """The part of the body that the Range header asks for, as 206; the whole where If-Range names another version."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
    if not reply.ranges or reply.status != 200 or found is None:
        return reply
    if if_range is not None and if_range != reply.headers.get("ETag"):
        return reply
    start, size = int(found[1]), len(reply.body)
    end = min(int(found[2] or size - 1), size - 1)
    if start >= size:
        return Reply(416, b"", {"Content-Range": f"bytes */{size}"})
    return Reply(
        206, reply.body[start : end + 1], {**reply.headers, "Content-Range": f"bytes {start}-{end}/{size}"}, True
    )
