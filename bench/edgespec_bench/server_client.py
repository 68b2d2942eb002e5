"""The client of ``bench server``, in a process of its own, as real clients are.

Beside the server's threads it would wait for Python's lock. A request is made before the clock starts and its answer is
read after it has stopped, so what is timed is the server and the sockets.

As a program (HOST:PORT) it answers each line of its standard input, see ``Client``.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from time import perf_counter
from typing import Any

from edgespec.errors import BackendError

_OK = b"HTTP/1.1 200"
_HEAD_ENDS = b"\r\n\r\n"
_END = b"0\r\n\r\n"
"""of a body in chunks"""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Client:
    """Starts that process, and asks through it."""

    def __init__(self, netloc: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgespec_bench.server_client", netloc],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, path: str, fields: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
        """Over one connection, which stays. Seconds until the whole stream is here, and its last event."""
        seconds, text = self._do({"path": path, "fields": fields, "whole": True})
        return seconds, json.loads(_last_event(text))

    def first_byte_s(self, path: str, fields: Mapping[str, Any], *, whole: bool) -> float:
        """Over a new connection, which opens within that time. whole: the rest is awaited, too. Else the client goes
        away."""
        return self._do({"path": path, "fields": fields, "whole": whole, "new": True})[0]

    def close(self) -> None:
        self._process.communicate()

    def _do(self, order: Mapping[str, Any]) -> tuple[float, str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "its client ended"}')
        if "error" in answer:
            raise BackendError(f"the server gave no answer: {answer['error']}")
        return answer["seconds"], answer["text"]


def _main(netloc: str) -> None:
    kept = _connect(netloc)
    for line in sys.stdin:
        order = json.loads(line)
        head = {"Host": netloc, "Content-Length": "", "Connection": "close" if "new" in order else "keep-alive"}
        body = json.dumps(order["fields"]).encode()
        head["Content-Length"] = str(len(body))
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        request = f"POST {order['path']} HTTP/1.1\r\n{lines}\r\n".encode() + body
        try:
            found = _first_byte(netloc, request, order["whole"]) if "new" in order else _whole(kept, request)
            answer: dict[str, Any] = dict(zip(("seconds", "text"), found, strict=True))
        except OSError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


def _whole(connection: socket.socket, request: bytes) -> tuple[float, str]:
    began = perf_counter()
    connection.sendall(request)
    head, body = _answer(connection, _read(connection))
    seconds = perf_counter() - began
    return seconds, _text(head, body)


def _first_byte(netloc: str, request: bytes, whole: bool) -> tuple[float, str]:
    began = perf_counter()
    with _connect(netloc) as connection:
        connection.sendall(request)
        first = _read(connection)
        seconds = perf_counter() - began
        if whole or not first.startswith(_OK):
            _text(*_answer(connection, first))
    return seconds, ""


def _answer(connection: socket.socket, first: bytes) -> tuple[bytes, bytes]:
    """Head and body of an answer that begins with these bytes. A stream comes in chunks, a refusal has a length."""
    while _HEAD_ENDS not in first:
        first += _read(connection)
    head, _, body = first.partition(_HEAD_ENDS)
    length = _LENGTH.search(head)
    while len(body) < int(length[1]) if length else not body.endswith(_END):
        body += _read(connection)
    return head, body


def _text(head: bytes, body: bytes) -> str:
    """Of a stream that came to its end. Raises OSError with the server's words for another, or a refusal."""
    text = body.decode()
    said = _last_event(text) if head.startswith(_OK) else text
    with suppress(ValueError):
        fields = json.loads(said)
        if isinstance(fields, dict) and "error" in fields:
            error = fields["error"]
            raise OSError(error["message"] if isinstance(error, dict) and "message" in error else str(error))
    if not head.startswith(_OK):
        raise OSError(said or head.partition(b"\r\n")[0].decode())
    return text


def _last_event(text: str) -> str:
    return text.rsplit("data: ", 1)[-1].partition("\r\n")[0]


def _connect(netloc: str) -> socket.socket:
    host, port = netloc.rsplit(":", 1)
    return socket.create_connection((host, int(port)))


def _read(connection: socket.socket) -> bytes:
    if part := connection.recv(1 << 16):
        return part
    raise OSError("the server closed the connection")


if __name__ == "__main__":
    _main(sys.argv[1])
