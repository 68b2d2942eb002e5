"""A queue that is full says so at once, whatever its requests wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgespec.pipeline import Pipeline
from edgespec.server.prepare import prepare as really_prepare
from edgespec.server.residents import Offer, Residents
from edgespec.server.service import Service
from tests.fake_server import fake_pipeline, on_a_port
from tests.server_calls import LONG_S, Beside, ask, until

LONGEST = 2


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def tokenize(url: str) -> httpx.Response:
    return httpx.post(f"{url}/tokenize", json={"content": "hello"}, timeout=LONG_S)


def refused_at_once(call: Callable[[str], httpx.Response], url: str, came: Callable[[], bool]) -> list[Beside]:
    """came: whether all that have a place wait."""
    threads = [Beside(lambda: call(url)) for _ in range(1 + LONGEST)]
    until(came)
    answer = call(url)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["message"] == f"tiny has {LONGEST} requests waiting"
    return threads


@pytest.mark.parametrize("call", [ask, tokenize])
def test_while_a_model_loads(tmp_path: Path, go_on: threading.Event, call: Callable[[str], httpx.Response]) -> None:
    def load() -> Pipeline:
        assert go_on.wait(LONG_S)
        return fake_pipeline(tmp_path)

    service = Service(Residents({"tiny": Offer(name="tiny", load=load)}), longest_queue=LONGEST)
    loaded = service.residents.loaded
    with on_a_port(service) as url:
        threads = refused_at_once(call, url, lambda: "tiny" in loaded and loaded["tiny"].users == 1 + LONGEST)
        go_on.set()
        assert [thread.end().status_code for thread in threads] == [200] * 3
        assert call(url).status_code == 200, "their places are free"


def test_while_a_prompt_is_prepared(tmp_path: Path, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = fake_pipeline(tmp_path)

    def prepare(*args: Any) -> Any:
        assert go_on.wait(LONG_S)
        return really_prepare(*args)

    monkeypatch.setattr("edgespec.server.service.prepare", prepare)
    service = Service(Residents({"tiny": Offer(name="tiny", load=lambda: tiny)}), longest_queue=LONGEST)
    loaded = service.residents.loaded
    with on_a_port(service) as url:
        threads = refused_at_once(ask, url, lambda: "tiny" in loaded and loaded["tiny"].users == 1 + LONGEST)
        go_on.set()
        assert [thread.end().status_code for thread in threads] == [200] * 3


def test_places_are_free_again_however_a_request_ends(tmp_path: Path) -> None:
    tiny = fake_pipeline(tmp_path)
    offers = {"tiny": Offer(name="tiny", load=lambda: tiny), "none": Offer(name="none", load=lambda: 1 / 0)}  # type: ignore[arg-type,return-value]
    service = Service(Residents(offers), longest_queue=0)
    with on_a_port(service) as url:
        for fields, status in (
            ({"model": "none"}, 503),
            ({"text": "a " * 2000}, 400),
            ({"stream": True}, 200),
            ({}, 200),
        ):
            for _ in range(2):
                assert ask(url, **fields).status_code == status
