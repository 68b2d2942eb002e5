"""What a server keeps of a request that has ended: nothing, whoever sent it, whatever it asked for, however it ended.

What is kept shows as memory that grows in each of several equal parts: by an object a request, or by an entry a request
where it goes into a list or a map. Tables grow in jumps, and not in every part, so their entries are counted.
"""

from __future__ import annotations

import gc
import http.client
import json
import socket
import subprocess
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
TABLES = (list, dict, set, deque)
COUNTS, SAME = 10, 3
KEPT_TEXTS = 64
"""whose tokens the prompts of holes are made of; a new file has a new name"""
TEXTS = 3
"""prompts that come again and again. Those of other texts would go into pools and caches, which have bounds."""


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


def entries_of(objects: list[Any]) -> int:
    """Of their lists, maps and so on."""
    # Maps of texts and numbers are not among the collector's objects, but held by them.
    plain = {id(each): each for each in gc.get_referents(*objects) if type(each) is dict and not gc.is_tracked(each)}
    tables = chain(objects, plain.values())
    return sum(len(each) for each in tables if issubclass(type(each), TABLES))


def kept() -> tuple[int, int, int]:
    """Blocks of Python's objects, bytes of its lists, maps and so on, which are no such blocks, and their entries.

    Connections end a moment after their clients, so the least of several counts counts: of so many, or of as many as it
    takes until the last three found nothing less.
    """
    blocks, nbytes, entries = [], [], []
    for number in range(COUNTS):
        time.sleep(0.05)
        gc.collect()
        sys._clear_type_cache()  # it holds up to 4,096 names by which C code has called methods
        blocks.append(sys.getallocatedblocks())
        objects = gc.get_objects()
        nbytes.append(sum(map(sys.getsizeof, objects)))
        entries.append(entries_of(objects))
        del objects
        if number >= SAME and all(min(each[:-SAME]) <= min(each[-SAME:]) for each in (blocks, nbytes, entries)):
            break
    return min(blocks), min(nbytes), min(entries)


def of_a_planted(put: Any) -> list[int]:
    """Entries that each part adds where a table gets one a round. The objects in it were there before."""
    items = [object() for _ in range(PARTS * ROUNDS)]
    holder, entries = [put.__objclass__()], []
    for part in range(PARTS):
        for item in items[part * ROUNDS : (part + 1) * ROUNDS]:
            put(holder[0], item)
        gc.collect()
        entries.append(entries_of(gc.get_objects()))
    return [after - before for before, after in pairwise(entries)]


def of_a_server(folder: Path) -> dict[str, list[int]]:
    """What each part of the requests adds."""
    service = service_of(fake_pipeline(folder, model=sensitive))
    counts = []
    with on_a_port(service) as url:
        strangers = Strangers(url)
        for _ in range(KEPT_TEXTS):
            strangers.hole(next(strangers.numbers))
        for _ in range(PARTS):
            for _ in range(ROUNDS):
                strangers.round()
            strangers.chat(0)  # lookups hold the same text at the end of each part
            at_rest(service)
            counts.append(kept())
    grown = [[after - before for before, after in pairwise(each)] for each in zip(*counts, strict=True)]
    return dict(zip(("blocks", "bytes", "entries"), grown, strict=True))


PLANTED = {"list": list.append, "deque": deque.append, "set": set.add, "dict": dict.setdefault}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Of a process of its own: here other tests have left objects, and threads that make some."""
    folder = tmp_path_factory.mktemp("served")
    command = [sys.executable, "-m", "tests.test_server_memory", str(folder)]
    ran = subprocess.run(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, check=True)
    found: dict[str, list[int]] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("table", PLANTED)
def test_one_entry_a_round_is_seen_in_every_part(grown: dict[str, list[int]], table: str) -> None:
    """Though the table grows in jumps."""
    assert min(grown[table]) >= ROUNDS


@pytest.mark.parametrize(("what", "least"), [("blocks", ROUNDS), ("bytes", POINTER * ROUNDS), ("entries", ROUNDS)])
def test_nothing_is_kept_of_every_request(grown: dict[str, list[int]], what: str, least: int) -> None:
    """``least`` is what a part keeps if it keeps one object, pointer or entry a round."""
    assert min(grown[what]) < least, grown[what]


if __name__ == "__main__":
    found = of_a_server(Path(sys.argv[1]))
    gc.freeze()  # what is there already needs no counting: the planted tables are made behind this line
    print(json.dumps(found | {name: of_a_planted(put) for name, put in PLANTED.items()}))
