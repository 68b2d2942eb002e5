"""What a server keeps of a request that has ended: nothing, whoever sent it, whatever it asked for, however it ended.

What is kept shows as memory that grows in each of several equal parts: by an object a request, or by an entry a request
where it goes into a list or a map. Tables grow in jumps, and not in every part, so their entries are counted.
"""

from __future__ import annotations

import gc
import http.client
import json
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from edgespec.server.service import Service
from tests.fake_server import fake_pipeline, on_a_port, service_of
from tests.test_server_load import sensitive

PARTS, ROUNDS = 5, 12
"""the first part fills caches and pools; in a round each kind of request comes once"""
POINTER = 8
COUNTS = 10
KEPT_TEXTS = 64
"""whose tokens the prompts of holes are made of; a new file has a new name"""
TEXTS = 3
"""prompts that come again and again. Those of other texts would go into pools and caches, which have bounds."""


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return service_of(fake_pipeline(tmp_path, model=sensitive))


class Strangers:
    """Each request comes from somebody else: another program, key, file, slot, path and model name."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self.numbers = count()

    def kinds(self) -> list[Callable[[int], None]]:
        return [
            self.chat,
            self.stream,
            self.ollama,
            self.hole,
            self.leave,
            self.cut,
            self.broken,
            self.lost,
            self.wrong,
        ]

    def chat(self, n: int) -> None:
        assert self._post("/v1/chat/completions", _chat(n), n) == 200

    def stream(self, n: int) -> None:
        assert self._post("/v1/chat/completions", _chat(n) | {"stream": True, "user": f"user {n}"}, n) == 200

    def ollama(self, n: int) -> None:
        assert self._post("/api/chat", {"messages": _chat(n)["messages"], "options": {"num_predict": 2}}, n) == 200

    def hole(self, n: int) -> None:
        asked = {"input_prefix": f"a{n % TEXTS}", "id_slot": n, "filename": f"{n}.py", "n_predict": 2}
        assert self._post("/infill", asked, n) == 200

    def leave(self, n: int) -> None:
        body = json.dumps(_chat(n) | {"stream": True, "max_tokens": 100, "ignore_eos": True})
        with socket.create_connection(_address(self._host)) as reader:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            reader.sendall(f"{head}{body}".encode())
            assert reader.recv(16)

    def cut(self, n: int) -> None:
        with socket.create_connection(_address(self._host)) as writer:
            writer.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")

    def broken(self, n: int) -> None:
        assert self._post("/v1/completions", {"messages": n}, n) == 400

    def lost(self, n: int) -> None:
        assert self._post(f"/v1/unknown/{n}", {}, n) == 404

    def wrong(self, n: int) -> None:
        assert self._post("/v1/completions", {"prompt": "a", "model": f"model {n}"}, n) == 404

    def round(self) -> None:
        for kind in self.kinds():
            kind(next(self.numbers))

    def _post(self, path: str, body: dict[str, Any], n: int) -> int:
        connection = http.client.HTTPConnection(self._host)
        try:
            headers = {"User-Agent": f"program {n}", "Authorization": f"Bearer {n}", "Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()


def _chat(n: int) -> dict[str, Any]:
    sampled = {"temperature": 0.8, "seed": n} if n % 2 else {}
    return {"messages": [{"role": "user", "content": "abc"[: 1 + n % TEXTS]}], "max_tokens": 2, **sampled}


def _address(host: str) -> tuple[str, int]:
    name, port = host.split(":")
    return name, int(port)


def at_rest(service: Service) -> None:
    resident = service.residents.loaded["tiny"]
    deadline = time.monotonic() + 60
    while resident.users or resident.worker.running or resident.worker.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kept(counts: int = COUNTS) -> tuple[int, int, int]:
    """Blocks of Python's objects, bytes of its lists, maps and so on, which are no such blocks, and their entries.

    Connections end a moment after their clients, so the least of several counts counts.
    """
    blocks, nbytes, entries = [], [], []
    for _ in range(counts):
        time.sleep(0.05)
        gc.collect()
        sys._clear_type_cache()  # it holds up to 4,096 names by which C code has called methods
        blocks.append(sys.getallocatedblocks())
        objects = gc.get_objects()
        nbytes.append(sum(map(sys.getsizeof, objects)))
        # Maps of texts and numbers are not among the collector's objects, but held by them.
        plain = {
            id(each): each for each in gc.get_referents(*objects) if type(each) is dict and not gc.is_tracked(each)
        }
        tables = chain(objects, plain.values())
        entries.append(sum(len(each) for each in tables if issubclass(type(each), list | dict | set | deque)))
        del objects, plain, tables
    return min(blocks), min(nbytes), min(entries)


@pytest.mark.parametrize(
    "put", [list.append, deque.append, set.add, dict.setdefault], ids=["list", "deque", "set", "dict"]
)
def test_one_entry_a_round_is_seen_in_every_part(put: Any) -> None:
    """Though the table grows in jumps, and the objects in it were there before."""
    items = [object() for _ in range(PARTS * ROUNDS)]
    holder, entries = [put.__objclass__()], []
    for part in range(PARTS):
        for item in items[part * ROUNDS : (part + 1) * ROUNDS]:
            put(holder[0], item)
        entries.append(kept(1)[2])
    grown = [after - before for before, after in pairwise(entries)]
    assert min(grown) >= ROUNDS, grown


def test_nothing_is_kept_of_every_request(service: Service) -> None:
    blocks, nbytes, entries = [0] * PARTS, [0] * PARTS, [0] * PARTS
    with on_a_port(service) as url:
        strangers = Strangers(url)
        for _ in range(KEPT_TEXTS):
            strangers.hole(next(strangers.numbers))
        for part in range(PARTS):
            for _ in range(ROUNDS):
                strangers.round()
            strangers.chat(0)  # lookups hold the same text at the end of each part
            at_rest(service)
            blocks[part], nbytes[part], entries[part] = kept()
    grown = [after - before for before, after in pairwise(blocks)]
    assert min(grown) < ROUNDS, f"objects kept of {ROUNDS} requests of each kind: {grown}"
    grown = [after - before for before, after in pairwise(nbytes)]
    assert min(grown) < POINTER * ROUNDS, f"bytes kept of {ROUNDS} requests of each kind: {grown}"
    grown = [after - before for before, after in pairwise(entries)]
    assert min(grown) < ROUNDS, f"entries kept of {ROUNDS} requests of each kind: {grown}"
