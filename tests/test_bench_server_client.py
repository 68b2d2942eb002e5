"""The client of ``bench server``: what a server says when it does not answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from edgespec.errors import BackendError
from edgespec_bench.server_client import Client
from tests.fake_server import Engine, fake_pipeline, on_a_port, service_of

ASKED = {"prompt": "a", "n_predict": 3, "stream": True, "ignore_eos": True}


@contextmanager
def asking(url: str) -> Iterator[Client]:
    with closing(Client(urlsplit(url).netloc)) as client:
        yield client


def test_a_refusal_is_told_at_once_and_the_next_request_is_answered(tmp_path: Path) -> None:
    """The server keeps the connection for longer than the test may take."""
    with on_a_port(service_of(fake_pipeline(tmp_path))) as url, asking(url) as client:
        with pytest.raises(BackendError, match="the server gave no answer: .*n_predict"):
            client.ask("/completion", ASKED | {"n_predict": "many"})
        for whole in (True, False):
            with pytest.raises(BackendError, match="the server gave no answer: .*n_predict"):
                client.first_byte_s("/completion", ASKED | {"n_predict": "many"}, whole=whole)
        assert client.ask("/completion", ASKED)[1]["timings"]["predicted_n"] == 3
        assert client.first_byte_s("/completion", ASKED, whole=True) > 0


def test_a_stream_that_ends_in_an_error_is_told(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    engine = pipeline.target
    assert isinstance(engine, Engine)
    with on_a_port(service_of(pipeline)) as url, asking(url) as client:
        client.ask("/completion", ASKED)
        engine.error = BackendError("the engine is gone")
        with pytest.raises(BackendError, match="the server gave no answer: .*the engine is gone"):
            client.ask("/completion", ASKED)


def test_a_server_that_goes_away_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, asking(f"http://127.0.0.1:{server.getsockname()[1]}") as one:

        def leave() -> None:
            connection = server.accept()[0]
            connection.recv(1 << 16)
            connection.close()

        thread = threading.Thread(target=leave)
        thread.start()
        with pytest.raises(BackendError, match="the server closed the connection"):
            one.ask("/completion", ASKED)
        thread.join()
