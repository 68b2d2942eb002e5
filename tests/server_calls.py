"""Requests over a real socket to a server on a fake model, whose engine waits where a test holds it.

A file of tests takes the fixtures by name: served, engine = server_calls.served, server_calls.engine
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from edgespec.pipeline import Pipeline
from edgespec.server.service import Service
from tests.fake_server import Engine, fake_pipeline, on_a_port, service_of

LONG_S = 20.0


@pytest.fixture
def served(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path)


@pytest.fixture
def engine(served: Pipeline) -> Iterator[Engine]:
    engine = cast(Engine, served.target)
    yield engine
    engine.gate.set()


@pytest.fixture
def service(served: Pipeline) -> Service:
    return service_of(served, longest_queue=2)


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with on_a_port(service) as url:
        yield url


def body(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8} | fields


def ask(url: str, *args: Any, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=body(*args, **fields), timeout=LONG_S, headers=headers)


def complete(url: str, text: str = "hello", headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    asked = {"prompt": text, "max_tokens": 8} | fields
    return httpx.post(f"{url}/v1/completions", json=asked, timeout=LONG_S, headers=headers)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return cast(str, choice["message"]["content"] if "message" in choice else choice["text"])


class Beside(threading.Thread):
    """A call on another thread, and its result."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call, self.result = call, None
        self.start()

    def run(self) -> None:
        self.result = self._call()

    def end(self) -> Any:
        self.join(LONG_S)
        assert not self.is_alive()
        return self.result


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def held(engine: Engine, call: Callable[[], Any]) -> Beside:
    """A call that waits within its first forward."""
    engine.gate.clear()
    thread = Beside(call)
    assert engine.entered.acquire(timeout=LONG_S)
    return thread
