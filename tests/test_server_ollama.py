"""Ollama's routes, on a fake model."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request as HTTPRequest
from starlette.testclient import TestClient

from edgespec.hub.progress import Watch
from edgespec.pipeline import Pipeline
from edgespec.server import ollama_models
from edgespec.server.app import application
from edgespec.server.ollama_models import Models
from edgespec.server.refusals import NoModel
from edgespec.server.residents import Offer
from edgespec.server.service import Service
from tests.fake_server import CAPACITY, fake_pipeline, service_of
from tests.tiny_models import TEMPLATE

HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return fake_pipeline(tmp_path_factory.mktemp("ollama"))


@pytest.fixture
def service(served: Pipeline) -> Service:
    return service_of(served)


@pytest.fixture
def client(service: Service) -> TestClient:
    return TestClient(application(service), base_url="http://127.0.0.1")


def lines(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_chat_streams_lines_and_ends_with_counts(client: TestClient, served: Pipeline) -> None:
    alone = served.chat(HELLO, max_new_tokens=12)
    body = {"model": "tiny:latest", "messages": HELLO, "options": {"num_predict": 12}}
    *parts, last = lines(client.post("/api/chat", json=body))
    assert "".join(part["message"]["content"] for part in (*parts, last)) == alone.text
    assert all(part["done"] is False and part["model"] == "tiny" and part["created_at"] for part in parts)
    assert last["done"] is True and last["done_reason"] == "length"
    assert last["eval_count"] == 12 and last["prompt_eval_count"] == alone.stats.prompt_tokens
    for name in ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"):
        assert isinstance(last[name], int) and last[name] >= 0
    whole = client.post("/api/chat", json=body | {"stream": False}).json()
    assert whole["message"]["content"] == alone.text and whole["done"]


def test_generate_answers_a_prompt_or_continues_it_raw(client: TestClient, served: Pipeline) -> None:
    body = {"prompt": "The lighthouse", "stream": False, "options": {"num_predict": 12}}
    answered = client.post("/api/generate", json=body | {"system": "Be brief."}).json()["response"]
    assert answered == served.generate("The lighthouse", system="Be brief.", max_new_tokens=12).text
    continued = client.post("/api/generate", json=body | {"raw": True}).json()["response"]
    assert continued == served.generate("The lighthouse", raw=True, max_new_tokens=12).text
    filled = client.post("/api/generate", json=body | {"suffix": " leaned."}).json()["response"]
    assert filled == served.infill("The lighthouse", " leaned.", max_new_tokens=12).text


def test_a_format_is_kept(client: TestClient) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
    for given in (schema, "json"):
        body = {"messages": HELLO, "stream": False, "format": given, "options": {"num_predict": 60}}
        answer = client.post("/api/chat", json=body).json()
        if given == schema:
            assert "n" in json.loads(answer["message"]["content"])
        else:
            assert answer["message"]["content"].startswith("{")


def test_what_editors_ask_about_models(client: TestClient) -> None:
    version = client.get("/api/version").json()["version"]
    assert all(part.isdigit() for part in version.split("."))
    [tag] = client.get("/api/tags").json()["models"]
    assert tag["name"] == tag["model"] == "tiny" and len(tag["digest"]) == 64
    for spelling in ({"model": "tiny"}, {"name": "tiny:latest"}):
        shown = client.post("/api/show", json=spelling).json()
        info = shown["model_info"]
        assert info[f"{info['general.architecture']}.context_length"] == CAPACITY
        assert "completion" in shown["capabilities"] and "tools" not in shown["capabilities"]
        assert f"num_ctx {CAPACITY}" in shown["parameters"] and ".Suffix" not in shown["template"]
    [loaded] = client.get("/api/ps").json()["models"]
    assert loaded["name"] == "tiny" and loaded["expires_at"].startswith("2318")
    assert client.get("/").text == "edgespec is running"


def test_what_a_prompt_would_be_made_of_is_used_or_refused(client: TestClient) -> None:
    body = {"prompt": "The lighthouse", "stream": False, "options": {"num_predict": 2}}
    for wrong in ({"template": "{{ .Prompt }}"}, {"context": [1, 2]}, {"raw": True, "system": "Be brief."}):
        answer = client.post("/api/generate", json=body | wrong)
        assert answer.status_code == 400 and list(wrong)[-1] in answer.json()["error"], answer.text
    harmless: tuple[dict[str, Any], ...] = ({"template": ""}, {"context": []}, {"raw": True, "system": ""})
    for each in harmless:
        assert client.post("/api/generate", json=body | each).status_code == 200


def test_a_delete_that_is_refused_changes_nothing(client: TestClient, service: Service) -> None:
    client.post("/api/generate", json={"model": "tiny"})
    answer = client.request("DELETE", "/api/delete", json={"model": "tiny"})
    assert answer.status_code == 501 and "edgespec models" in answer.json()["error"]
    assert "tiny" in service.residents.loaded


def test_an_empty_prompt_loads_and_unloads(client: TestClient, service: Service) -> None:
    for path in ("/api/chat", "/api/generate"):
        loaded = client.post(path, json={"model": "tiny"}).json()
        assert loaded["done"] and loaded["done_reason"] == "load" and "tiny" in service.residents.loaded
        unloaded = client.post(path, json={"model": "tiny", "keep_alive": 0}).json()
        assert unloaded["done_reason"] == "unload" and not service.residents.loaded


def test_a_model_is_pulled_by_its_name(
    client: TestClient, service: Service, served: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(ollama_models, "_TELL_S", 0.01)

    def fetch(name: str) -> Callable[[Watch], Offer]:
        if name != "other":
            raise NoModel(f"no model {name!r} to fetch")

        def run(watch: Watch) -> Offer:
            fetched.append(name)
            watch.total = 10
            watch.update(5)
            time.sleep(0.1)  # several lines
            return Offer(name=name, load=lambda: served)

        return run

    service.fetch = fetch
    *_, last = said = lines(client.post("/api/pull", json={"model": "other"}))
    assert last == {"status": "success"} and fetched == ["other"]
    assert {"status": "pulling other", "total": 10, "completed": 5} in said
    assert [tag["name"] for tag in client.get("/api/tags").json()["models"]] == ["tiny", "other"]
    assert client.post("/api/pull", json={"name": "other", "stream": False}).json() == {"status": "success"}
    assert fetched == ["other"]
    answer = client.post("/api/pull", json={"model": "../../etc/passwd"})
    assert answer.status_code == 404 and "to fetch" in answer.json()["error"]


def test_a_fetch_runs_once_and_goes_on_without_who_asked(service: Service, served: Pipeline) -> None:
    fetched, go_on = [], threading.Event()

    def fetch(watch: Watch) -> Offer:
        fetched.append(threading.current_thread())
        assert go_on.wait(20)
        return Offer(name="other", load=lambda: served)

    async def work() -> None:
        service.fetch = lambda name: fetch
        handlers = Models(service)
        body = b'{"model": "other", "stream": false}'
        asked = [asyncio.ensure_future(handlers.pull(HTTPRequest({"type": "http"}), body)) for _ in range(3)]
        await asyncio.sleep(0.05)
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        go_on.set()
        for _ in range(200):
            await asyncio.sleep(0.01)
            if service.residents.has("other"):
                break
        assert service.residents.has("other")
        assert len(fetched) == 1 and fetched[0].daemon  # a server that stops does not wait for it

    asyncio.run(work())


@pytest.mark.parametrize("path", ["embed", "embeddings", "create", "copy", "push", "blobs/sha256:1"])
def test_what_is_not_offered_says_so(client: TestClient, path: str) -> None:
    answer = client.post(f"/api/{path}", json={"model": "tiny"})
    assert answer.status_code == 501 and "not supported" in answer.json()["error"]


def test_only_a_model_that_reasons_is_asked_to_think(client: TestClient, tmp_path: Path) -> None:
    """As Ollama says it."""
    body = {"messages": HELLO, "prompt": "Hello", "stream": False, "options": {"num_predict": 2}}
    template = TEMPLATE + "{% if enable_thinking %}<think>{% endif %}"
    thinks = service_of(fake_pipeline(tmp_path, template=template))
    reasons = TestClient(application(thinks), base_url="http://127.0.0.1")
    for path in ("/api/chat", "/api/generate"):
        for think, status in ((True, 400), ("high", 400), (False, 200), (None, 200)):
            answer = client.post(path, json=body | {"think": think})
            assert answer.status_code == status, answer.text
            assert status == 200 or answer.json()["error"] == "tiny does not support thinking"
            assert reasons.post(path, json=body | {"think": think}).status_code == 200
    for each, can in ((client, False), (reasons, True)):
        assert ("thinking" in each.post("/api/show", json={"model": "tiny"}).json()["capabilities"]) is can


def test_a_model_is_listed_with_the_engine_that_runs_it(client: TestClient, served: Pipeline) -> None:
    def formats() -> list[str]:
        [tag], loaded = client.get("/api/tags").json()["models"], client.get("/api/ps").json()["models"]
        return [each["details"]["format"] for each in (tag, *loaded)]

    assert formats() == [""]
    shown = client.post("/api/show", json={"model": "tiny"}).json()
    assert [shown["details"]["format"], *formats()] == 3 * [served.target.capabilities.backend]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said_in_the_shape_of_ollama(client: TestClient, stream: bool) -> None:
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"model": "no", "messages": HELLO}, 404, "no model"),
        ({"messages": HELLO, "options": {"temperature": "hot"}}, 400, "temperature"),
        ({"messages": HELLO, "options": {"mirostat": 2}}, 400, "mirostat"),
        ({"messages": HELLO, "format": "xml"}, 400, "format"),
        ({"messages": [{"role": "user", "content": "x", "images": ["abc"]}]}, 400, "images"),
        ({"messages": [{"role": "user", "content": "x y " * CAPACITY}]}, 400, "longer than the context"),
    ]
    for body, status, said in cases:
        answer = client.post("/api/chat", json=body | {"stream": stream})
        assert answer.status_code == status and said in answer.json()["error"], answer.text
    assert client.get("/api/nothing").json()["error"].startswith("no route")
    assert client.request("DELETE", "/api/delete", json={"model": "tiny"}).status_code == 501
