"""A server that is killed while an answer streams: what the page had shown is in the file, but for the last moment.

The server's clock counts the parts that it sent, so that a moment is as many parts on every machine.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from itertools import islice
from math import ceil
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgespec.server.chat import routes
from edgespec.server.chat.store import Store
from tests.fake_server import fake_pipeline, on_a_port, service_of

PART_S = 2.0**-6
LAST_MOMENT = ceil(routes.WRITE_S / PART_S)
"""parts that may be lost: those since the last write, with the one that the next write follows"""
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
PROCESSES: Any = multiprocessing.get_context(METHOD)
PROCESSES.set_forkserver_preload([__name__])


class Sent:
    """In place of the module ``time``: the parts that were sent, of so many seconds each."""

    parts = 0

    def of(self, chunk: Any) -> dict[str, Any]:
        self.parts += 1
        return PART_OF(chunk)

    def monotonic(self) -> float:
        return self.parts * PART_S


PART_OF = routes._part


def serve(folder: Path, told: Connection) -> None:
    sent: Any = Sent()
    vars(routes).update(time=sent, _part=sent.of)
    service = service_of(fake_pipeline(folder / "model", pace_s=0.002))
    with on_a_port(service, more=routes.ChatPage(service, folder / "chats.sqlite").routes()) as url:
        told.send(url)
        time.sleep(60)


def killed(folder: Path, after: int) -> None:
    """after: so many parts were read."""
    ours, theirs = PROCESSES.Pipe()
    server = PROCESSES.Process(target=serve, args=(folder, theirs))
    server.start()
    try:
        assert ours.poll(60)
        url = ours.recv()
        chat = httpx.post(f"{url}/app/chats", json={"options": {"temperature": 1.0, "seed": 3}}).json()["id"]
        turn = httpx.post(f"{url}/app/chats/{chat}/turns", json={"content": "Hello there"}).json()["id"]
        with httpx.stream("POST", f"{url}/app/chats/{chat}/answer", json={"parent": turn}, timeout=30) as stream:
            events = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
            assert "turn" in next(events)
            seen = [event.get("text", "") for event in islice(events, after)]
            server.kill()
    finally:
        server.kill()
        server.join()
    store = Store(folder / "chats.sqlite")
    question, answer = store.turns(chat)
    store.close()
    assert store.mended == ""
    assert question.content == "Hello there"
    shown, old = "".join(seen), "".join(seen[:-LAST_MOMENT])
    assert answer.content.startswith(old)
    assert answer.content.startswith(shown) or shown.startswith(answer.content)


@pytest.mark.parametrize("seed", range(2))
def test_a_kill_loses_the_last_moment_alone(tmp_path: Path, seed: int) -> None:
    killed(tmp_path, random.Random(seed).randrange(2 * LAST_MOMENT, 8 * LAST_MOMENT))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 50))
def test_a_kill_at_any_moment_loses_no_more(tmp_path: Path, seed: int) -> None:
    killed(tmp_path, random.Random(seed).randrange(0, 8 * LAST_MOMENT))
