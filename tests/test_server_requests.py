"""Requests on their way: turns, newest wins, queues, sizes and failures. Real sockets."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, cast

import httpx
import pytest
from starlette.requests import Request as HTTPRequest
from starlette.testclient import TestClient

from edgespec.pipeline import Pipeline
from edgespec.server import terminal, wire
from edgespec.server.app import application
from edgespec.server.openai_shapes import shape_error
from edgespec.server.refusals import TooLarge
from edgespec.server.service import Service
from tests import server_calls
from tests.fake_server import Engine
from tests.server_calls import LONG_S, Beside, ask, body, complete, held, text_of, until

served, engine, service, url = server_calls.served, server_calls.engine, server_calls.service, server_calls.url


def test_requests_are_answered_in_turn(url: str, served: Pipeline, engine: Engine) -> None:
    alone = {text: served.chat(body(text)["messages"], max_new_tokens=8).text for text in ("one", "two", "three")}
    first = held(engine, lambda: ask(url, "one"))
    others = [Beside(lambda text=text: ask(url, text)) for text in ("two", "three")]  # type: ignore[misc]
    engine.gate.set()
    assert [text_of(thread.end()) for thread in (first, *others)] == list(alone.values())


def test_the_newest_request_of_a_slot_wins(url: str, service: Service, served: Pipeline, engine: Engine) -> None:
    expected = served.generate("third", raw=True, max_new_tokens=8).text
    first = held(engine, lambda: complete(url, "first", id_slot=3, ignore_eos=True, max_tokens=400))
    second = Beside(lambda: complete(url, "second", id_slot=3))
    until(lambda: service.residents.loaded["tiny"].worker.waiting == 1)
    other = Beside(lambda: complete(url, "third"))
    third = Beside(lambda: complete(url, "third", id_slot=3))
    assert second.end().status_code == 409  # it never began
    engine.gate.set()
    assert first.end().status_code == 409 and first.end().json()["error"]["code"] == "replaced"
    assert first.end().headers["x-should-retry"] == "false"
    assert text_of(third.end()) == text_of(other.end()) == expected


def test_two_clients_with_the_same_slot_do_not_end_each_other(
    url: str, service: Service, served: Pipeline, engine: Engine
) -> None:
    """They are told apart by their program, or by their key."""
    expected = served.generate("one", raw=True, max_new_tokens=8).text
    for name, values in (("user-agent", ("curl/8.5", "node")), ("authorization", ("Bearer one", "Bearer two"))):
        first = held(engine, lambda: complete(url, "one", id_slot=0, headers={name: values[0]}))  # noqa: B023
        other = Beside(lambda: complete(url, "one", id_slot=0, headers={name: values[1]}))  # noqa: B023
        until(lambda: service.residents.loaded["tiny"].worker.waiting == 1)
        same = Beside(lambda: complete(url, "one", id_slot=0, headers={name: values[1]}))  # noqa: B023
        assert other.end().status_code == 409
        engine.gate.set()
        assert text_of(first.end()) == text_of(same.end()) == expected


def test_a_client_that_sends_too_much_reads_why(url: str) -> None:
    """Whether it says its length before or not."""
    for content in (b" " * (wire.MOST_BODY + 1), iter([b" " * (1 << 20)] * 17)):
        answer = httpx.post(f"{url}/v1/chat/completions", content=content, timeout=LONG_S)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    assert text_of(ask(url))


def test_an_answer_that_cannot_be_written_is_an_error_of_the_server() -> None:
    async def handle(http: HTTPRequest, body: bytes) -> wire.Json:
        return wire.Json(object())

    with pytest.raises(TypeError, match="object"):
        TestClient(wire.Endpoint(handle, shape_error)).get("/")


def test_of_an_endless_body_no_more_is_read() -> None:
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b" " * 10, "more_body": True}

    with pytest.raises(TooLarge):
        asyncio.run(wire.read_body(receive, 100, "1000"))
    assert read == 41


def test_a_full_queue_says_when_to_come_again(url: str, service: Service, engine: Engine) -> None:
    first = held(engine, lambda: ask(url, "one"))
    others = [Beside(lambda: ask(url, "two")) for _ in range(2)]
    until(lambda: service.residents.loaded["tiny"].worker.waiting == 2)
    refused = ask(url, "three", stream=True)
    assert int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["code"] == "queue_full"
    engine.gate.set()
    assert all(thread.end().status_code == 200 for thread in (first, *others))


def test_an_engine_that_fails_says_so_and_answers_the_next(
    url: str, served: Pipeline, engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = text_of(ask(url))
    for stream in (False, True):
        served.target.cache.reset()
        engine.error = RuntimeError("secret text")
        answer = ask(url, stream=stream)
        if stream:
            assert answer.status_code == 200 and "[DONE]" not in answer.text
            error = json.loads(answer.text.strip().rsplit("data: ", 1)[1])["error"]
        else:
            assert answer.status_code == 500
            error = answer.json()["error"]
        assert error["code"] == "engine_failed" and "secret" not in error["message"]
        assert text_of(ask(url)) == expected
    said = capfd.readouterr().err
    assert "RuntimeError" in said and "secret" not in said


def test_a_terminal_that_is_gone_ends_no_answer(
    service: Service, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an editor that has started the server and is closed."""

    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    service.listeners.append(terminal.ended)
    client = TestClient(terminal.RefusedLines(application(service)), base_url="http://127.0.0.1")
    monkeypatch.setattr(sys, "stderr", Gone())
    engine.error = RuntimeError("broken")
    assert client.post("/v1/chat/completions", json=body()).status_code == 500
    assert client.post("/v1/chat/completions", json={}).status_code == 400
    assert text_of(cast(Any, client.post("/v1/chat/completions", json=body())))
