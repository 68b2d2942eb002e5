"""A file over HTTP that goes on where it stopped: from a server with ranges, one without, and one that breaks off."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from edgespec.errors import IntegrityError
from edgespec.hub import download
from edgespec.hub.progress import Paused

BODY = bytes(range(256)) * 4096


class Files(ThreadingHTTPServer):
    """One file. takes_ranges: else each request gets all of it. cut: break off after so many bytes. says_length: else
    its end is that of the connection. page: sent in its place. leads_to: where it is instead."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.takes_ranges = self.says_length = True
        self.cut: int | None = None
        self.page: bytes | None = None
        self.leads_to = ""
        self.ranges: list[str | None] = []
        self.tokens: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    server: Files

    def do_GET(self) -> None:
        reach = self.headers.get("Range")
        self.server.ranges.append(reach)
        self.server.tokens.append(self.headers.get("Authorization"))
        if self.server.leads_to:
            self.send_response(302)
            self.send_header("Location", self.server.leads_to)
            self.end_headers()
            return
        if self.server.page is not None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.page)))
            self.end_headers()
            self.wfile.write(self.server.page)
            return
        begin = int(reach.removeprefix("bytes=").rstrip("-")) if reach and self.server.takes_ranges else 0
        if begin >= len(BODY):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        if self.server.says_length:
            self.send_header("Content-Length", str(len(BODY) - begin))
        self.end_headers()
        end = len(BODY) if self.server.cut is None else begin + self.server.cut
        self.wfile.write(BODY[begin:end])

    def log_message(self, *_: object) -> None:
        pass


class Bar:
    """stop_at: bytes at which it ends the download."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.n, self.stop_at = 0, stop_at

    def update(self, count: int) -> None:
        self.n += count
        if self.stop_at is not None and self.n >= self.stop_at:
            raise Paused("paused")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)
    with serving() as server:
        yield server


@contextmanager
def serving() -> Iterator[Files]:
    server = Files()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "file.part"


def fetch(server: Files, part: Path, bar: Bar | None = None, size: int | None = len(BODY)) -> Bar:
    bar = bar or Bar()
    download.fetch(server.url, part, bar, what="file", size=size)
    assert part.read_bytes() == BODY
    assert bar.n == len(BODY)
    return bar


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_a_paused_download_goes_on(server: Files, part: Path, takes_ranges: bool) -> None:
    server.takes_ranges = takes_ranges
    with pytest.raises(Paused):
        fetch(server, part, Bar(stop_at=len(BODY) // 2))
    had = part.stat().st_size
    assert 0 < had < len(BODY) and part.read_bytes() == BODY[:had]
    fetch(server, part)
    assert server.ranges == [None, f"bytes={had}-"]


@pytest.mark.parametrize("says_length", [True, False])
def test_a_connection_that_breaks_is_made_again(server: Files, part: Path, says_length: bool) -> None:
    server.cut, server.says_length = 300_000, says_length
    fetch(server, part)
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_server_that_never_gets_further_is_left(server: Files, part: Path) -> None:
    """It sends the beginning again and again, and breaks off at the same byte."""
    server.takes_ranges, server.cut = False, 300_000
    with pytest.raises(httpx.TransportError):
        fetch(server, part)
    assert len(server.ranges) == 1 + download._TRIES
    assert part.read_bytes() == BODY[:300_000]


def test_nobody_who_answers(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)
    with pytest.raises(httpx.ConnectError):
        download.fetch("http://127.0.0.1:9/file", part, Bar(), what="file")


def test_what_is_whole_is_not_asked_for(server: Files, part: Path) -> None:
    part.write_bytes(BODY)
    fetch(server, part)
    assert server.ranges == []
    fetch(server, part, size=None)
    assert server.ranges == [f"bytes={len(BODY)}-"]


def test_a_file_that_is_longer_than_it_may_be_fills_no_disk(server: Files, part: Path) -> None:
    server.says_length = False
    with pytest.raises(IntegrityError, match="too long"):
        fetch(server, part, size=300_000)
    assert server.ranges == [None] and not part.exists()


@pytest.mark.parametrize("page", [b"<html>", BODY + b"x"])
def test_a_page_in_place_of_the_file_costs_nothing_of_what_is_there(server: Files, part: Path, page: bytes) -> None:
    """A network that asks to sign in answers so."""
    part.write_bytes(BODY[:1000])
    server.page = page
    with pytest.raises(httpx.HTTPError, match=f"has another file, of {len(page)} bytes and not {len(BODY)}"):
        fetch(server, part)
    assert part.read_bytes() == BODY[:1000] and len(server.ranges) == 1
    server.page = None
    fetch(server, part)
    assert server.ranges[1:] == ["bytes=1000-"]


def test_another_server_is_told_no_token(server: Files, part: Path) -> None:
    with serving() as other:
        server.leads_to = other.url
        download.fetch(server.url, part, Bar(), what="file", size=len(BODY), headers={"Authorization": "Bearer secret"})
        assert part.read_bytes() == BODY
        assert (server.tokens, other.tokens) == (["Bearer secret"], [None])
