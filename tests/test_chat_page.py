"""The routes of the chat page, on fake models."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from edgespec.errors import SourceError
from edgespec.hub import catalog
from edgespec.hub.progress import Watch
from edgespec.pipeline import Pipeline
from edgespec.process_end import PREFIX
from edgespec.server.app import application
from edgespec.server.chat import picker
from edgespec.server.chat.routes import FILES, ChatPage
from edgespec.server.chat.store import Store
from edgespec.server.residents import Offer
from edgespec.server.service import Service
from edgespec.stats import Stats
from tests.fake_server import Engine, fake_pipeline, service_of

CODER = "qwen2.5-coder-1.5b"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return service_of(fake_pipeline(tmp_path / "model"))


@pytest.fixture
def client(service: Service, tmp_path: Path) -> Iterator[TestClient]:
    page = ChatPage(service, tmp_path / "data" / "chats.sqlite")
    app = application(service, more=page.routes())
    with TestClient(app, base_url="http://127.0.0.1:8012") as client:
        yield client


def ask(client: TestClient, content: str = "Hello there", **options: Any) -> tuple[str, int]:
    chat = client.post("/app/chats", json={"options": {"max_tokens": 40, **options}}).json()["id"]
    turn = client.post(f"/app/chats/{chat}/turns", json={"content": content}).json()["id"]
    return chat, turn


def answer(client: TestClient, chat: str, parent: int) -> list[dict[str, Any]]:
    with client.stream("POST", f"/app/chats/{chat}/answer", json={"parent": parent}) as stream:
        assert stream.status_code == 200, stream.read()
        return [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event.get("text", "") for event in events)


def test_the_page_is_closed_to_scripts_of_others(client: TestClient) -> None:
    for name in FILES:
        page = client.get(f"/{name}")
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    index = client.get("/").text
    assert "http" not in index.replace("http-equiv", "")
    assert "<script>" not in index
    assert " style=" not in index


def test_an_answer_streams_and_is_kept_with_its_facts(client: TestClient) -> None:
    chat, turn = ask(client)
    events = answer(client, chat, turn)
    shown = client.get(f"/app/chats/{chat}").json()
    assert shown["title"] == "Hello there"
    kept = shown["turns"][-1]
    assert kept["id"] == events[0]["turn"] == shown["leaf"]
    assert kept["content"] == text_of(events) != ""
    facts = kept["facts"]
    assert facts == events[-1]["facts"]
    assert facts["finish"] in ("stop", "length")
    assert facts["timings"]["predicted_n"] > 0
    assert facts["context_length"] == 512
    assert sum(length for length, _ in facts["drafted"]) == len(kept["content"])
    assert facts["why"]


def test_the_thread_that_wrote_says_once_what_it_would_take_without_drafts(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's costs change while it writes, and the event loop has other requests to serve."""
    threads: list[str] = []

    def expected_plain_s(self: Pipeline, stats: Stats) -> float:
        threads.append(threading.current_thread().name)
        return 1000.0

    monkeypatch.setattr(Pipeline, "expected_plain_s", expected_plain_s)
    facts = answer(client, *ask(client))[-1]["facts"]
    assert facts["speedup"] == 1000.0 * facts["timings"]["predicted_per_second"]
    assert len(threads) == 1 and threads[0].startswith(PREFIX)
    assert 'edgespec_speedup{model="' in client.get("/metrics").text


def test_the_chain_of_turns_is_what_the_model_reads(client: TestClient) -> None:
    chat, turn = ask(client, "one", temperature=0.0)
    first = text_of(answer(client, chat, turn))
    again = text_of(answer(client, chat, turn))
    assert again == first, "the same question has the same greedy answer, as a branch beside it"
    messages = [{"role": "user", "content": "one"}]
    asked = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 40, "temperature": 0})
    assert asked.json()["choices"][0]["message"]["content"] == first
    client.patch(f"/app/chats/{chat}", json={"system": "Be brief."})
    other = text_of(answer(client, chat, turn))
    messages.insert(0, {"role": "system", "content": "Be brief."})
    asked = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 40, "temperature": 0})
    assert asked.json()["choices"][0]["message"]["content"] == other


def test_files_go_in_front_of_the_question(client: TestClient) -> None:
    chat = client.post("/app/chats", json={"options": {"max_tokens": 4}}).json()["id"]
    files = [{"name": "a.py", "text": "x = 1"}]
    turn = client.post(f"/app/chats/{chat}/turns", json={"content": "What is x?", "files": files}).json()
    assert turn["files"] == files
    with_file = answer(client, chat, turn["id"])[-1]["facts"]["timings"]
    assert with_file["prompt_n"] + with_file["cache_n"] > 10
    export = client.get(f"/app/chats/{chat}/export?format=markdown").text
    assert "[a.py]\n\n```\nx = 1\n```" in export


def test_a_page_that_goes_away_leaves_what_was_written(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path / "model", pace_s=0.02)
    service = service_of(pipeline)
    path = tmp_path / "chats.sqlite"
    with TestClient(application(service, more=ChatPage(service, path).routes()), base_url="http://127.0.0.1") as client:
        chat, turn = ask(client)
        assert isinstance(pipeline.target, Engine)
        pipeline.target.error = RuntimeError("the engine broke")
        events = answer(client, chat, turn)
        assert "error" in events[-1]["facts"]
        shown = client.get(f"/app/chats/{chat}").json()["turns"][-1]
        assert shown["facts"]["error"] == events[-1]["facts"]["error"]
        assert text_of(answer(client, chat, turn)), "the next answer works"


def test_turns_are_edited_into_branches(client: TestClient) -> None:
    chat, turn = ask(client)
    first = answer(client, chat, turn)[0]["turn"]
    edited = client.put(f"/app/chats/{chat}/turns/{first}", json={"content": "Better."}).json()
    assert (edited["parent"], edited["role"]) == (turn, "assistant")
    shown = client.get(f"/app/chats/{chat}").json()
    assert shown["leaf"] == edited["id"]
    assert [each["id"] for each in shown["turns"]] == [turn, first, edited["id"]]
    client.patch(f"/app/chats/{chat}", json={"leaf": first})
    assert client.get(f"/app/chats/{chat}").json()["leaf"] == first


def test_chats_are_listed_found_pinned_deleted_and_restored(client: TestClient) -> None:
    one, _ = ask(client, "about apples")
    two, _ = ask(client, "about pears")
    assert [chat["id"] for chat in client.get("/app/chats").json()] == [two, one]
    client.patch(f"/app/chats/{one}", json={"pinned": True, "title": "Fruit"})
    assert [chat["title"] for chat in client.get("/app/chats").json()] == ["Fruit", "about pears"]
    assert [chat["id"] for chat in client.get("/app/chats?q=apples").json()] == [one]
    client.patch(f"/app/chats/{one}", json={"deleted": True})
    assert [chat["id"] for chat in client.get("/app/chats").json()] == [two]
    client.patch(f"/app/chats/{one}", json={"deleted": False})
    assert len(client.get("/app/chats").json()) == 2


def test_chats_leave_and_come_back(client: TestClient) -> None:
    chat, turn = ask(client)
    answer(client, chat, turn)
    exported = client.get("/app/export")
    assert "attachment" in exported.headers["content-disposition"]
    assert client.post("/app/import", content=exported.content).json() == {"chats": 1}
    assert len(client.get("/app/chats").json()) == 2
    refused = client.post("/app/import", content=b"\xff\xfe")
    assert refused.status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/app/chats/none", None, 404),
        ("PATCH", "/app/chats/none", {"title": "x"}, 404),
        ("POST", "/app/chats/none/turns", {"content": "x"}, 404),
        ("POST", "/app/chats", {"colour": "red"}, 400),
        ("POST", "/app/chats/{chat}/turns", {"content": " "}, 400),
        ("POST", "/app/chats/{chat}/turns", {"content": "x", "parent": 10**6}, 404),
        ("POST", "/app/chats/{chat}/answer", {}, 400),
        ("POST", "/app/chats/{chat}/answer", {"parent": 10**6}, 404),
        ("PATCH", "/app/chats/{chat}", {"options": {"temperature": "hot"}}, 400),
        ("PATCH", "/app/chats/{chat}", {"options": {"temperature": -1}}, 400),
        ("DELETE", "/app/chats/{chat}", None, 405),
    ],
)
def test_what_is_wrong_is_said(client: TestClient, method: str, path: str, body: Any, status: int) -> None:
    chat, _ = ask(client)
    answered = client.request(method, path.format(chat=chat), json=body)
    assert answered.status_code == status
    assert answered.json()["error"]["message"]


def test_a_page_of_another_origin_is_refused(client: TestClient) -> None:
    assert client.get("/app/chats", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/app/chats", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/app/chats", headers={"origin": "http://127.0.0.1:8012"}).status_code == 200


def test_the_state_names_models_and_a_mended_file(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    path.write_bytes(b"damaged" * 1000)
    with TestClient(application(service, more=ChatPage(service, path).routes()), base_url="http://127.0.0.1") as client:
        state = client.get("/app/state").json()
    assert [model["name"] for model in state["models"]] == ["tiny"]
    assert "damaged" in state["mended"]
    assert Store(path).listed() == []


def test_models_are_listed_with_what_they_ask(client: TestClient) -> None:
    models = {model["name"]: model for model in client.get("/app/models").json()}
    assert next(iter(models)) == "smollm2-135m"
    coder = models[CODER]
    assert coder["memory"] == {"bytes": coder["bytes"], "is_measured": False}
    assert models["qwen2.5-7b"]["memory"] is None, "its size is not known before the hub is asked"
    assert (coder["licence"], coder["use"], coder["here"], coder["drafts"]) == ("Apache-2.0", "any", False, True)
    assert coder["bytes"] > 1e9
    assert any(model["use"] == "research" for model in models.values())


def entry(client: TestClient, name: str = CODER) -> dict[str, Any]:
    return next(model for model in client.get("/app/models").json() if model["name"] == name)


def wait_for(client: TestClient, state: str | None) -> dict[str, Any] | None:
    for _ in range(500):
        found = entry(client)["download"]
        if state == (found and found["state"]):
            return found
        time.sleep(0.01)
    raise AssertionError(f"{state} was not reached: {found}")


def test_a_download_shows_its_bytes_pauses_and_goes_on(client: TestClient, service: Service, home: Path) -> None:
    """The bytes on the disk are the state: a server that begins finds them."""
    sha256 = catalog.load().models[CODER].sha256
    part = home / "downloads" / f"{sha256}.part"
    part.parent.mkdir(parents=True)
    broken = threading.Event()

    def fetch(name: str, *, mirror: bool) -> Callable[[Watch], Offer]:
        def run(watch: Watch) -> Offer:
            watch.n, watch.total = 0, 1000
            with part.open("ab") as file:
                watch.update(file.tell())
                while file.tell() < 1000:
                    file.write(b"x")
                    file.flush()
                    watch.update(1)
                    time.sleep(0.001)
                    if broken.is_set():
                        raise SourceError("the connection broke")
            part.unlink()
            return Offer(name=name, load=lambda: None)  # type: ignore[arg-type, return-value]

        return run

    assert client.post(f"/app/models/{CODER}/download").status_code == 404, "this server fetches nothing"
    service.fetch = fetch
    assert entry(client)["download"] is None
    assert client.post(f"/app/models/{CODER}/download").status_code == 202
    running = wait_for(client, "running")
    assert running and running["total"] == 1000
    client.post(f"/app/models/{CODER}/pause")
    paused = wait_for(client, "paused")
    assert paused and 0 < paused["bytes"] == part.stat().st_size < 1000
    assert paused["total"] == catalog.load().models[CODER].bytes

    client.post(f"/app/models/{CODER}/download")
    broken.set()
    failed = wait_for(client, "failed")
    assert failed and failed["failure"] == "the connection broke" and failed["bytes"] > paused["bytes"]

    broken.clear()
    client.post(f"/app/models/{CODER}/download")
    wait_for(client, None)
    assert entry(client)["here"]


def test_a_speed_is_measured_or_said_to_be_an_estimate(client: TestClient) -> None:
    assert entry(client)["speed"] is None, "nothing has answered yet"
    chat, turn = ask(client)
    facts = answer(client, chat, turn)[-1]["facts"]
    assert facts["weights_bytes"] == 1000
    speeds = picker.Speeds([facts | {"speedup": 2.0}])
    measured = facts["timings"]["predicted_per_second"]
    assert speeds.of("tiny", None) == {"tok_per_s": pytest.approx(measured), "is_measured": True}
    assert speeds.of("other", 4000) == {"tok_per_s": pytest.approx(measured / 2 / 4), "is_measured": False}
    assert picker.Speeds([{"finish": "stop"}, facts | {"speedup": None}]).of("other", 4000) is None

    small = {"model": "small", "weights_bytes": 10, "timings": {"predicted_ms": 10.0, "predicted_per_second": 30.0}}
    near = small | {"model": "near", "weights_bytes": 1000, "speedup": 1.0}
    found = picker.Speeds([small | {"speedup": 1.0}, near]).of("other", 2000)
    assert found == {"tok_per_s": pytest.approx(15.0), "is_measured": False}


def test_chats_of_another_machine_say_nothing_of_the_speed_here(client: TestClient) -> None:
    timings = {"predicted_ms": 10.0, "predicted_per_second": 30.0}
    facts = {"model": CODER, "weights_bytes": 10, "timings": timings, "speedup": 1.0}
    lines = [{"chat": "x"}, {"id": 1, "role": "assistant", "content": "y", "facts": facts}]
    client.post("/app/import", content="\n".join(json.dumps(line) for line in lines).encode())
    assert entry(client)["speed"] is None


def test_nothing_that_cannot_be_sent_gets_into_the_chats(client: TestClient) -> None:
    for content in (b'{"options": {"seed": 99999999999999999999}}', b'{"options":' + b'{"a":' * 10**5, b"\xff"):
        assert client.post("/app/chats", content=content).status_code == 400
    assert client.post("/app/chats", content=b'{"options": {"mood": 99999999999999999999}}').json()["options"] == {}
    assert client.get("/app/chats").status_code == 200


def test_an_export_that_is_longer_than_any_prompt_comes_back(client: TestClient) -> None:
    file = {"name": "log", "text": "x" * (17 << 20)}
    lines = [{"chat": "long"}, {"id": 1, "role": "user", "content": "read this", "files": [file]}]
    sent = "\ufeff" + "\n".join(json.dumps(line) for line in lines)
    assert client.post("/app/import", content=sent.encode()).json() == {"chats": 1}


def test_chats_that_another_program_has_are_said(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "chats.sqlite").mkdir()
    found = client.get("/app/chats")
    assert (found.status_code, "cannot be used" in found.text) == (503, True)
    (tmp_path / "data" / "chats.sqlite").rmdir()
    assert client.get("/app/chats").json() == []
