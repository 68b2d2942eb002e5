"""Requests on their way: turns, cancelling, newest wins, queues, failures, and the stop of a server. Real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.requests import Request as HTTPRequest
from starlette.testclient import TestClient

from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.server import terminal, wire
from edgespec.server.address import Address
from edgespec.server.app import application
from edgespec.server.listen import Listener
from edgespec.server.openai_shapes import shape_error
from edgespec.server.refusals import TooLarge
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


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return cast(str, answer.json()["choices"][0]["message"]["content"])


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


def test_requests_are_answered_in_turn(url: str, served: Pipeline, engine: Engine) -> None:
    alone = {text: served.chat(body(text)["messages"], max_new_tokens=8).text for text in ("one", "two", "three")}
    first = held(engine, lambda: ask(url, "one"))
    others = [Beside(lambda text=text: ask(url, text)) for text in ("two", "three")]  # type: ignore[misc]
    engine.gate.set()
    assert [text_of(thread.end()) for thread in (first, *others)] == list(alone.values())


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


def test_the_newest_request_of_a_slot_wins(url: str, service: Service, served: Pipeline, engine: Engine) -> None:
    expected = served.chat(body("third")["messages"], max_new_tokens=8).text
    first = held(engine, lambda: ask(url, "first", id_slot=3, ignore_eos=True, max_tokens=400))
    second = Beside(lambda: ask(url, "second", id_slot=3))
    until(lambda: service.residents.loaded["tiny"].worker.waiting == 1)
    other = Beside(lambda: ask(url, "third"))
    third = Beside(lambda: ask(url, "third", id_slot=3))
    assert second.end().status_code == 409  # it never began
    engine.gate.set()
    assert first.end().status_code == 409 and first.end().json()["error"]["code"] == "replaced"
    assert text_of(third.end()) == text_of(other.end()) == expected


def test_two_clients_with_the_same_slot_do_not_end_each_other(
    url: str, service: Service, served: Pipeline, engine: Engine
) -> None:
    """They are told apart by their program, or by their key."""
    expected = served.chat(body("one")["messages"], max_new_tokens=8).text
    for name, values in (("user-agent", ("curl/8.5", "node")), ("authorization", ("Bearer one", "Bearer two"))):
        first = held(engine, lambda: ask(url, "one", id_slot=0, headers={name: values[0]}))  # noqa: B023
        other = Beside(lambda: ask(url, "one", id_slot=0, headers={name: values[1]}))  # noqa: B023
        until(lambda: service.residents.loaded["tiny"].worker.waiting == 1)
        same = Beside(lambda: ask(url, "one", id_slot=0, headers={name: values[1]}))  # noqa: B023
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


def test_a_silent_stream_shows_signs_of_life(url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.pinged, "__defaults__", (0.02,))
    engine.gate.clear()
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body(stream=True), timeout=LONG_S) as answer:
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith(":")) == ": ping"
        engine.gate.set()
        assert "data: [DONE]" in list(lines)


def test_a_server_that_stops_lets_answers_end_and_ends_those_that_do_not(
    served: Pipeline, engine: Engine, service: Service
) -> None:
    with on_a_port(service) as url:
        quick = held(engine, lambda: ask(url, "quick"))
        waiting = Beside(lambda: ask(url, "waits"))
        until(lambda: service.residents.loaded["tiny"].worker.waiting == 1)
        threading.Timer(0.3, engine.gate.set).start()
    assert quick.end().status_code == 200
    assert waiting.end().status_code == 503 and "stopping" in waiting.end().json()["error"]["message"]


def test_a_server_that_stops_ends_a_long_stream_with_an_error(
    served: Pipeline, engine: Engine, service: Service
) -> None:
    engine.pace_s = 0.02
    address = Address("127.0.0.1", 0)
    listener = Listener(application(service), service, address, grace_s=0.2)
    thread = Beside(lambda: asyncio.run(listener.run()))
    fields = body(stream=True, ignore_eos=True, max_tokens=450)
    with httpx.stream("POST", f"{address.url}/v1/chat/completions", json=fields, timeout=LONG_S) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if '"content":"' in line)
        listener.stop()
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the server is stopping"
    thread.end()


def test_a_port_in_use_is_named_and_a_second_server_recognized(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    with pytest.raises(SettingError, match="An edgespec server is running there") as error:
        Address("127.0.0.1", port)
    assert str(port) in str(error.value) and error.value.setting == "port"
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.01)
        with pytest.raises(SettingError, match="in use. Stop what uses it"):
            Address("127.0.0.1", other.getsockname()[1])


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


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no such sockets here")
def test_a_socket_in_the_file_system(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "edgespec.sock"
    for _ in range(2):
        listener = Listener(application(service), service, Address("", 0, path))
        thread = Beside(lambda: asyncio.run(listener.run()))  # noqa: B023
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://any") as client:
            until(lambda: path.exists())
            assert client.get("/health").status_code == 200
            with pytest.raises(SettingError, match="in use"):
                Address("", 0, path)
        listener.stop()
        thread.end()
        service = Service(service.residents)
        assert not path.exists()
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))  # as a killed server leaves it


def test_an_idle_server_takes_no_time(url: str) -> None:
    ask(url)
    began = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - began < 0.02


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


SERVER = """
import asyncio, sys
from pathlib import Path
from edgespec.server.address import Address
from edgespec.server.app import application
from edgespec.server.listen import Listener
from tests.fake_server import fake_pipeline, service_of

service, address = service_of(fake_pipeline(Path(sys.argv[1]))), Address("127.0.0.1", 0)
print(address.url, flush=True)
asyncio.run(Listener(application(service), service, address).run())
print("stopped", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="a signal ends a process there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_graceful_stop(tmp_path: Path, number: signal.Signals) -> None:
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body(stream=True), timeout=LONG_S) as answer:
            lines = answer.iter_lines()
            # The role comes while the answer still waits for the model. A stop refuses what has not begun.
            next(line for line in lines if '"delta":{"content":' in line)
            server.send_signal(number)
            assert "data: [DONE]" in list(lines)
        assert server.stdout.read().strip() == "stopped"
    assert server.returncode == 0


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
