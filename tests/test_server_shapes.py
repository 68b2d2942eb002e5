"""Why there is no answer, as the clients of each API read it, on every route that writes. The next request works."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.testclient import TestClient

from edgespec.errors import BundleError
from edgespec.pipeline import Pipeline
from edgespec.server.address import Address
from edgespec.server.app import application
from edgespec.server.listen import Listener
from edgespec.server.refusals import Unavailable, without_folders
from edgespec.server.residents import Offer, Residents
from edgespec.server.service import Service
from tests.fake_server import Engine, fake_pipeline, on_a_port, service_of

HELLO = [{"role": "user", "content": "Hello."}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "The lighthouse"},
    "/v1/responses": {"input": "Hello."},
    "/api/chat": {"messages": HELLO},
    "/api/generate": {"prompt": "Hello."},
    "/completion": {"prompt": "The lighthouse"},
    "/infill": {"input_prefix": "def area(w, h):\n    ", "input_suffix": "\n"},
}
"""and what each needs"""
BIG = 10**9
"""bytes: of a model, and of all memory"""
LONG_S = 20.0


def message_of(path: str, said: dict[str, Any], status: int) -> str:
    """What is said, if it is said in the shape of the route's API."""
    error = said["error"]
    if path.startswith("/api/"):
        assert said.keys() == {"error"}
        return cast(str, error)
    if path.startswith("/v1/"):
        assert error.keys() == {"message", "type", "param", "code"}
    else:
        assert error.keys() == {"message", "type", "code"} and error["code"] == status
    return cast(str, error["message"])


def refused(client: Any, path: str, status: int, **fields: Any) -> tuple[str, httpx.Response]:
    """The message, the same for a stream. A stream that never began is no stream."""
    said = set()
    for stream in (False, True):
        answer = client.post(path, json=ROUTES[path] | {"max_tokens": 4, "stream": stream} | fields)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
        said.add(message_of(path, answer.json(), status))
    [message] = said
    return message, answer


def works(client: Any, path: str, **fields: Any) -> None:
    answer = client.post(path, json=ROUTES[path] | {"max_tokens": 4, "stream": False} | fields)
    assert answer.status_code == 200 and "error" not in {name for name, each in answer.json().items() if each}


@pytest.fixture
def served(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path)


@pytest.mark.parametrize("path", ROUTES)
def test_a_model_without_room_says_who_has_it_and_when_to_come_again(path: str, tmp_path: Path) -> None:
    pipelines = [fake_pipeline(tmp_path / name, name=name) for name in ("one", "two")]
    service = service_of(*pipelines, size_of=lambda: BIG, budget_bytes=BIG)
    with TestClient(application(service), base_url="http://127.0.0.1") as client:
        works(client, path, model="one")
        service.residents.loaded["one"].users += 1  # an answer on its way
        message, answer = refused(client, path, 503, model="two")
        assert "no memory for two" in message and "one" in message and int(answer.headers["retry-after"]) >= 1
        works(client, path, model="one")
        service.residents.loaded["one"].users -= 1
        works(client, "/v1/chat/completions", model="two")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no file /home/ann/models/x.gguf", "no file x.gguf"),
        ("'/srv/My Models/ann/x.gguf' is cut off", "'x.gguf' is cut off"),
        (repr("C:\\Users\\Ann Lee\\x.xml"), "'x.xml'"),
        (f"{Path.home()}a/x.bin", "x.bin"),
        ("opened [/home/ann/a], `/home/ann/b`", "opened [a], `b`"),
        ("see https://huggingface.co/models/a, and 3/4", "see https://huggingface.co/models/a, and 3/4"),
    ],
)
def test_errors_name_no_folders(text: str, told: str) -> None:
    assert without_folders(text) == told


@pytest.mark.parametrize("path", ROUTES)
def test_a_model_that_cannot_be_loaded_says_why_and_is_tried_again(
    path: str, served: Pipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    """Folders of the server's machine are for its own terminal."""
    broken = True

    def load() -> Pipeline:
        if broken:
            raise BundleError("/home/ann/models/openvino_model.xml is cut off")
        return served

    service = Service(Residents({"tiny": Offer(name="tiny", load=load)}))
    with TestClient(application(service), base_url="http://127.0.0.1") as client:
        message, _ = refused(client, path, 503)
        assert message == "tiny cannot be loaded: openvino_model.xml is cut off"
        assert (
            "edgespec: tiny cannot be loaded: /home/ann/models/openvino_model.xml is cut off" in capfd.readouterr().err
        )
        assert not service.residents.loaded
        broken = False
        works(client, path)


@pytest.mark.parametrize("path", ROUTES)
def test_a_server_that_stops_takes_no_request(path: str, served: Pipeline) -> None:
    service = service_of(served)
    service.stopping = Unavailable("the server is stopping")
    with TestClient(application(service), base_url="http://127.0.0.1") as client:
        assert refused(client, path, 503)[0] == "the server is stopping"


@pytest.fixture
def full(served: Pipeline) -> Iterator[str]:
    """The address of a server with one request that runs, and one that waits: its queue is full."""
    service, engine = service_of(served, longest_queue=1), cast(Engine, served.target)
    with on_a_port(service) as url:
        engine.gate.clear()
        fields = {"messages": HELLO, "max_tokens": 4}
        threads = [
            threading.Thread(target=httpx.post, args=(f"{url}/v1/chat/completions",), kwargs=kwargs)
            for kwargs in [{"json": fields, "timeout": LONG_S}] * 2
        ]
        threads[0].start()
        assert engine.entered.acquire(timeout=LONG_S)
        threads[1].start()
        deadline = time.monotonic() + LONG_S
        while service.residents.loaded["tiny"].worker.waiting < 1:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        try:
            yield url
        finally:
            engine.gate.set()
            for thread in threads:
                thread.join(LONG_S)


def test_a_full_queue_is_429_with_retry_after(full: str) -> None:
    with httpx.Client(base_url=full, timeout=LONG_S) as client:
        for path in ROUTES:
            message, answer = refused(client, path, 429)
            assert "requests waiting" in message and int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ROUTES)
def test_a_stream_that_the_server_ends_ends_with_an_error(path: str, served: Pipeline) -> None:
    cast(Engine, served.target).pace_s = 0.02
    service, address = service_of(served), Address("127.0.0.1", 0)
    listener = Listener(application(service), service, address, grace_s=0.2)
    thread = threading.Thread(target=lambda: asyncio.run(listener.run()), daemon=True)
    thread.start()
    fields = ROUTES[path] | {"stream": True, "ignore_eos": True, "max_tokens": 400}
    with httpx.stream("POST", f"{address.url}{path}", json=fields, timeout=LONG_S) as answer:
        lines = (line for line in answer.iter_lines() if line)
        for _ in range(6):
            next(lines)
        listener.stop()
        last = list(lines)[-1]
    said = json.loads(last.removeprefix("data: "))
    if path == "/v1/responses":
        assert said["type"] == "error" and said["message"] == said["error"]["message"]
    assert message_of(path, said, 503) == "the server is stopping"
    thread.join(LONG_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v3/embeddings", "/v1/rerank", "/v1/reranking"])
def test_what_openais_clients_look_for_in_vain_is_said_in_its_shape(client: TestClient, path: str) -> None:
    answer = client.post(path, json={"model": "tiny", "input": "x"})
    error = answer.json()["error"]
    assert answer.status_code == 501 and error.keys() == {"message", "type", "param", "code"}
    assert error["message"].startswith(f"{path} is not supported") and error["code"] == "not_supported"


@pytest.mark.parametrize("path", ["/embedding", "/embeddings", "/rerank", "/reranking"])
def test_what_llama_cpps_clients_look_for_in_vain_is_said_in_its_shape(client: TestClient, path: str) -> None:
    answer = client.post(path, json={"content": "x"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (501, 501, "not_supported_error")
    assert error["message"].startswith(f"{path} is not supported")
