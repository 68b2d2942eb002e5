"""A server's place and its end: ports, sockets, rest, and a stop that lets answers end."""

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
from pathlib import Path

import httpx
import pytest

from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.server.address import Address
from edgespec.server.app import application
from edgespec.server.listen import Listener
from edgespec.server.service import Service
from tests import server_calls
from tests.fake_server import Engine, on_a_port
from tests.server_calls import LONG_S, Beside, ask, body, held, until

served, engine, service, url = server_calls.served, server_calls.engine, server_calls.service, server_calls.url


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


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no such sockets here")
def test_a_socket_of_a_newer_server_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "edgespec.sock"
    first = Address("", 0, path)
    first.socket.close()  # it takes no more, and lets its answers end
    second = Address("", 0, path)
    for _ in range(2):
        first.close()
        assert path.is_socket()
    second.close()
    assert not path.exists()


def test_an_idle_server_takes_no_time(url: str) -> None:
    ask(url)
    began = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - began < 0.02


def opened(port: int, sent: bytes) -> socket.socket:
    """A connection, and the end of the server's answer has come, if something was sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=LONG_S)
    connection.sendall(sent)
    came = b"}" if not sent else b""
    while not came.endswith(b"}"):
        came += (part := connection.recv(1 << 16))
        assert part
    return connection


def ends(connection: socket.socket, sent: bytes, goes_on: bytes = b"") -> None:
    with connection:
        deadline = time.monotonic() + LONG_S
        try:
            connection.sendall(sent)
            connection.settimeout(0.01)
            while time.monotonic() < deadline:
                try:
                    assert connection.recv(1) == b""
                    return
                except TimeoutError:
                    connection.sendall(goes_on)
        except ConnectionError:
            return
    pytest.fail("the connection is open")


def test_connections_that_bring_no_request_end(url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would take all that there are, and need no key. One that is answered or rests in between stays."""
    port = int(url.rsplit(":", 1)[1])
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    lost = b"POST /v1/none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n"
    answered = held(engine, lambda: ask(url))
    resting, begins, sends = opened(port, health), opened(port, health), opened(port, lost)
    monkeypatch.setattr("edgespec.server.listen.HEAD_S", 0.05)
    ends(begins, b"G")
    ends(sends, b"{")
    ends(opened(port, b""), b"")
    ends(opened(port, b""), health[:30])
    ends(opened(port, b""), health[:30], goes_on=b"a")
    with resting:
        resting.sendall(health)
        assert resting.recv(1)
    engine.gate.set()
    assert answered.end().status_code == 200
    monkeypatch.setattr("edgespec.server.listen.HEAD_S", 1.0)
    answered = held(engine, lambda: ask(url))
    ends(opened(port, b""), b"")  # its time began later
    engine.gate.set()
    assert answered.end().status_code == 200


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
