"""What of a request comes before what: the head of a stream, the model's thread, the answer, and counts of it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgespec.server import wire
from edgespec.server.app import application
from edgespec.server.service import Answer, Service
from edgespec.server.worker import Worker
from tests.fake_server import fake_pipeline, on_a_port, service_of
from tests.server_calls import body

PATH = "/v1/chat/completions"


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return service_of(fake_pipeline(tmp_path))


def asked(service: Service, seen: list[str], *, told: str = "told", **fields: Any) -> None:
    """One request, and in ``seen`` what happened."""

    async def work() -> None:
        content = json.dumps(body(**fields)).encode()
        came = iter([{"type": "http.request", "body": content}])

        async def receive() -> Any:
            return next(came, None) or await asyncio.sleep(60)

        async def send(message: Any) -> None:
            seen.append(message["type"].removeprefix("http.response."))

        scope = {"type": "http", "method": "POST", "path": PATH, "headers": [], "query_string": b""}
        await application(service)(scope, receive, send)
        await asyncio.sleep(0)

    service.listeners.append(lambda ended: seen.append(told))
    asyncio.run(work())


def test_the_head_of_a_stream_goes_out_before_the_model_begins(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's thread takes Python's lock, and the first byte would wait for it."""
    seen: list[str] = []
    really = Worker.wake
    monkeypatch.setattr(Worker, "wake", lambda worker: (seen.append("wake"), really(worker)))
    asked(service, seen, stream=True)
    assert seen[0] == "start" and "wake" in seen and seen.count("body") > 2


def test_an_answer_is_sent_before_it_is_counted(service: Service) -> None:
    seen: list[str] = []
    asked(service, seen)
    assert seen == ["start", "body", "told"]


@pytest.mark.parametrize("shown", [True, False])
def test_only_who_asks_for_it_is_told_how_a_prompt_is_read(
    service: Service, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To others a chunk that shows nothing is no sign of life, and puts the next one off."""
    read = []
    really = Answer.put
    monkeypatch.setattr(Answer, "put", lambda answer, chunk: (read.append(chunk.read), really(answer, chunk)))
    with on_a_port(service) as url:
        fields = body("hello " * 40, stream=True, return_progress=shown)
        text = httpx.post(f"{url}{PATH}", json=fields, timeout=60).text
    assert ("prompt_progress" in text) == shown and "[DONE]" in text
    assert any(read) == shown


def test_a_client_that_leaves_ends_its_block_and_nothing_behind_it() -> None:
    async def work() -> list[str]:
        done = []
        with wire._Cut() as cut:
            asyncio.get_running_loop().call_soon(cut.make)
            await asyncio.sleep(60)
        done.append(f"cut {cut.is_made}")
        with wire._Cut() as cut:
            done.append("whole")
        cut.make()
        await asyncio.sleep(0)
        done.append(f"cut {cut.is_made}")
        return done

    assert asyncio.run(work()) == ["cut True", "whole", "cut False"]


@pytest.mark.parametrize(
    "is_cut",
    [False, pytest.param(True, marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="ends are not counted"))],
)
def test_a_task_that_is_cancelled_from_outside_is_not_held(is_cut: bool) -> None:
    """Nor if its client leaves in the same turn of the loop."""

    async def work() -> None:
        cut = wire._Cut()

        async def block() -> None:
            with cut:
                await asyncio.sleep(60)

        task = asyncio.ensure_future(block())
        await asyncio.sleep(0)
        if is_cut:
            cut.make()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
