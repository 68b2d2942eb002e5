"""Clients that go away, stand still or send nothing: they end their own request, and hold nobody. Real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from edgespec.pipeline import Pipeline
from edgespec.server import wire
from edgespec.server.app import application
from edgespec.server.service import Service
from tests import server_calls
from tests.fake_server import Engine
from tests.server_calls import LONG_S, ask, body, text_of, until

served, engine, service, url = server_calls.served, server_calls.engine, server_calls.service, server_calls.url


def test_a_client_that_goes_away_stops_the_engine_at_the_next_round(
    url: str, service: Service, served: Pipeline, engine: Engine
) -> None:
    expected = served.chat(body("next")["messages"], max_new_tokens=8).text
    for stream in (False, True):
        client = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        content = json.dumps(body("long", max_tokens=400, ignore_eos=True, stream=stream))
        engine.gate.clear()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}"
        client.sendall(f"{head}\r\n\r\n{content}".encode())
        assert engine.entered.acquire(timeout=LONG_S)
        running = service.residents.loaded["tiny"].worker.running
        assert running is not None
        client.close()
        until(lambda: running.ended is not None)  # noqa: B023
        before = engine.forwards
        engine.gate.set()
        assert text_of(ask(url, "next")) == expected
        assert engine.forwards - before < 20


def test_a_long_prompt_is_left_between_two_chunks(url: str, service: Service, served: Pipeline, engine: Engine) -> None:
    engine.gate.clear()
    with pytest.raises(httpx.ReadTimeout):  # of the client: it goes away
        httpx.post(f"{url}/v1/completions", json={"prompt": [5] * 500, "max_tokens": 4}, timeout=0.3)
    worker = service.residents.loaded["tiny"].worker
    until(lambda: worker.running is not None and worker.running.ended is not None)
    before = engine.forwards
    engine.gate.set()
    until(lambda: worker.running is None)
    assert engine.forwards == before and served.target.cache.length == served.target.capabilities.max_width


def test_a_silent_stream_shows_signs_of_life(url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.pinged, "__defaults__", (0.02,))
    engine.gate.clear()
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body(stream=True), timeout=LONG_S) as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith(":")) == ": ping"
        engine.gate.set()
        assert "data: [DONE]" in list(lines)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_silent_stream_of_ollama_has_empty_parts(
    url: str, engine: Engine, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire.pinged, "__defaults__", (0.02,))
    engine.gate.clear()
    fields = body(prompt="hello", raw=True)
    with httpx.stream("POST", f"{url}{path}", json=fields, timeout=LONG_S) as answer:
        lines = map(json.loads, answer.iter_lines())
        first = next(lines)
        assert first["done"] is False and first.get("response", first.get("message", {}).get("content")) == ""
        engine.gate.set()
        assert [each["done"] for each in lines][-1] is True


def test_a_body_that_does_not_come_is_not_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BODY_S", 0.05)
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
        client.settimeout(LONG_S)
        assert client.recv(1000).startswith(b"HTTP/1.1 408")
    assert ask(url).status_code == 200


def test_a_slow_reader_keeps_nobody_waiting(url: str) -> None:
    fields = body(stream=True, ignore_eos=True, max_tokens=400, edgespec_rounds=True)
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=fields, timeout=LONG_S) as slow:
        assert ask(url).status_code == 200  # it comes, though nobody has read the other stream
        assert "data: [DONE]" in list(slow.iter_lines())


def test_a_client_that_leaves_before_the_first_byte_leaves_nothing_behind(service: Service, engine: Engine) -> None:
    """The stream's generator has not begun then, so its own end never runs."""

    async def work() -> None:
        content = json.dumps(body(stream=True, ignore_eos=True)).encode()
        headers = [(b"host", b"127.0.0.1")]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        messages, sending = [{"type": "http.request", "body": content}], asyncio.Event()

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await sending.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sending.set()
            await asyncio.sleep(LONG_S)

        app = application(service)
        await asyncio.wait_for(app(scope | {"query_string": b"", "server": ("127.0.0.1", 1)}, receive, send), LONG_S)
        assert service.residents.loaded["tiny"].users == 0
        await service.stop(0.1)

    asyncio.run(work())


def asgi(path: str, **fields: Any) -> tuple[dict[str, Any], bytes]:
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
        "server": ("127.0.0.1", 1),
        "client": ("127.0.0.1", 2),
        "http_version": "1.1",
        "scheme": "http",
    }
    return scope, json.dumps(fields).encode()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/completion"])
def test_a_client_that_leaves_before_the_first_byte_ends_its_request(service: Service, path: str) -> None:
    async def work() -> None:
        scope, content = asgi(path, **body(stream=True), prompt="x")
        came = iter([{"type": "http.request", "body": content}])

        async def receive() -> Any:
            if (message := next(came, None)) is not None:
                return message
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            begun.set()
            await asyncio.sleep(LONG_S)  # a connection that takes nothing

        begun = asyncio.Event()
        await asyncio.wait_for(application(service)(scope, receive, send), LONG_S)
        assert [resident.users for resident in service.residents.loaded.values()] == [0]

    asyncio.run(work())


async def _nothing() -> AsyncGenerator[bytes, None]:
    yield b""


def test_a_stream_is_closed_even_if_nothing_could_be_sent() -> None:
    closed: list[bool] = []

    async def fails(message: Any) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        asyncio.run(wire.Streamed(_nothing(), wire.SSE, lambda: closed.append(True)).send(fails))
    assert closed == [True]


def test_a_reader_that_stands_still_does_not_hold_the_model(service: Service) -> None:
    async def work() -> None:
        scope, content = asgi("/v1/chat/completions", **body(stream=True))
        came = iter([{"type": "http.request", "body": content}])

        async def receive() -> Any:
            return next(came, None) or await asyncio.sleep(LONG_S)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.sleep(LONG_S)

        reading = asyncio.ensure_future(application(service)(scope, receive, send))
        for _ in range(200):
            await asyncio.sleep(0.01)
            if (loaded := list(service.residents.loaded.values())) and not loaded[0].users:
                break
        assert loaded[0].users == 0
        reading.cancel()

    asyncio.run(work())
