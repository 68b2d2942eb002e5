"""Many clients at once, some of them rude: every answer that is finished is the one that a lone request gets."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from edgespec.backends.fake import FakeModel, random_table
from edgespec.pipeline import Pipeline
from edgespec.sampling_params import SamplingParams
from edgespec.server.sequences import Sequences
from edgespec.server.service import Service
from edgespec.server.wire import MOST_BODY
from tests.fake_server import fake_pipeline, on_a_port, service_of

QUESTIONS = 40
LOAD_S, ROUNDS = float(os.environ.get("EDGESPEC_LOAD_S", "60")), 4
"""of the load of fifty clients, and the parts of it"""
FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""for glibc, which else keeps the room of a huge body or two for the next"""
HUGE = b" " * (MOST_BODY + 1)
BUDGET = 80 * 256
"""bytes of saved prefixes: less than all the questions need"""


class Forgetful(FakeModel):
    """A fake model that keeps no record of its forwards: eight bytes each, for ever."""

    def start(self, *args: Any, **options: Any) -> None:
        super().start(*args, **options)
        self.widths.clear()


def sensitive(table: Any, vocab: int, **options: Any) -> FakeModel:
    """A model whose next token depends on the whole text: any wrong row in its cache shows."""
    return Forgetful(random_table(vocab, seed=1, order=1000), vocab, **options)


def question(number: int) -> dict[str, Any]:
    """One of forty requests, some greedy, some with a seed, some that begin alike."""
    rng = random.Random(number)
    text = "The lighthouse leaned. " * (number % 5) + " ".join(rng.choice("abcdefgh") for _ in range(number % 40))
    sampled = {"temperature": 0.8, "seed": number} if number % 2 else {}
    return {"messages": [{"role": "user", "content": text or "x"}], "max_tokens": 4 + number % 20, **sampled}


def alone(pipeline: Pipeline, body: dict[str, Any]) -> str:
    sampling = SamplingParams(temperature=body.get("temperature", 0.0), seed=body.get("seed"))
    return pipeline.chat(body["messages"], max_new_tokens=body["max_tokens"], sampling=sampling).text


class Crowd:
    """Clients of one server. finished: seconds of each whole answer."""

    def __init__(self, url: str, expected: Callable[[int], str]) -> None:
        self.url, self._expected = url, expected
        self.finished: list[float] = []
        self.left = 0

    async def run(self, clients: int, goes_on: Callable[[int], bool]) -> None:
        async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=clients)) as http:
            await asyncio.gather(*(self._client(http, number, goes_on) for number in range(clients)))

    async def _client(self, http: httpx.AsyncClient, number: int, goes_on: Callable[[int], bool]) -> None:
        rng, count = random.Random(number), 0
        while goes_on(count):
            count += 1
            kind = rng.choice([*2 * ["whole", "stream", "stream", "leaves", "leaves", "broken", "cut"], "slow", "huge"])
            await getattr(self, f"_{kind}")(http, rng)

    async def _whole(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        number, began = rng.randrange(QUESTIONS), time.perf_counter()
        answer = await http.post(f"{self.url}/v1/chat/completions", json=question(number))
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == self._expected(number)
        self.finished.append(time.perf_counter() - began)

    async def _stream(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        number, text, began = rng.randrange(QUESTIONS), "", time.perf_counter()
        async with http.stream("POST", f"{self.url}/api/chat", json=_ollama(question(number))) as answer:
            async for line in answer.aiter_lines():
                part = json.loads(line)
                text += part["message"]["content"]
                if rng.random() < 0.05:
                    await asyncio.sleep(0.01)  # a slow reader
        assert part["done"] and text == self._expected(number)
        self.finished.append(time.perf_counter() - began)

    async def _leaves(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """Before, within or behind the first pieces."""
        body = question(rng.randrange(QUESTIONS)) | {"stream": True, "max_tokens": 300, "ignore_eos": True}
        try:
            async with http.stream(
                "POST", f"{self.url}/v1/chat/completions", json=body, timeout=rng.random()
            ) as answer:
                async for _ in answer.aiter_lines():
                    if rng.random() < 0.3:
                        break
        except httpx.TimeoutException:
            pass
        self.left += 1

    async def _broken(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        content = rng.choice([b"{", b"\xff", b"[]", b'{"messages": 3}', b"x" * (1 << 20)])
        answer = await http.post(f"{self.url}/v1/chat/completions", content=content)
        assert answer.status_code == 400 and answer.json()["error"]["message"]

    async def _cut(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """A connection that ends in the middle of a body."""
        port = int(self.url.rsplit(":", 1)[1])
        _, writer = await asyncio.open_connection("127.0.0.1", port, family=socket.AF_INET)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{")
        await writer.drain()
        writer.close()

    async def _huge(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """A body over the limit."""
        answer = await http.post(f"{self.url}/v1/completions", content=HUGE)
        assert answer.status_code == 413

    async def _slow(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """A stream that nobody reads for a while: it may hold up no other client."""
        number = rng.randrange(QUESTIONS)
        async with http.stream(
            "POST", f"{self.url}/v1/chat/completions", json=question(number) | {"stream": True}
        ) as answer:
            await asyncio.sleep(1.0)
            parts = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line.startswith("data: {")]
        deltas = [json.loads(part)["choices"][0]["delta"] for part in parts]
        assert "".join(delta.get("content", "") for delta in deltas) == self._expected(number)


def _ollama(body: dict[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in body.items() if name != "messages"}
    return {"messages": body["messages"], "options": options}


@pytest.fixture
def crowd_of(tmp_path: Path) -> Callable[[str], Crowd]:
    lone = fake_pipeline(tmp_path / "lone", model=sensitive)
    known: dict[int, str] = {}

    def expected(number: int) -> str:
        if number not in known:
            known[number] = alone(lone, question(number))
        return known[number]

    for number in range(QUESTIONS):
        expected(number)
    return lambda url: Crowd(url, expected)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    served = fake_pipeline(tmp_path / "served", model=sensitive)
    return service_of(served, sequences=Sequences(BUDGET), longest_queue=100)


def require_rest(service: Service) -> None:
    """Nothing is left of anybody who went away."""
    resident = service.residents.loaded["tiny"]
    deadline = time.monotonic() + 20
    while resident.users or resident.worker.running or resident.worker.waiting:
        assert time.monotonic() < deadline, "a request that does not end"
        time.sleep(0.02)
    assert service.residents.sequences.nbytes <= BUDGET


def test_ten_clients_get_what_each_would_get_alone(service: Service, crowd_of: Callable[[str], Crowd]) -> None:
    with on_a_port(service) as url:
        crowd = crowd_of(url)
        asyncio.run(crowd.run(10, lambda count: count < 10))
        require_rest(service)
    assert len(crowd.finished) > 25 and crowd.left > 10


@pytest.mark.slow
def test_fifty_clients_leave_nothing_behind(tmp_path: Path, crowd_of: Callable[[str], Crowd]) -> None:
    with _a_process(tmp_path) as (url, held_when_idle):
        crowd, held = crowd_of(url), []
        for _ in range(1 + ROUNDS):  # the first fills caches and pools
            deadline = time.monotonic() + LOAD_S / ROUNDS
            asyncio.run(crowd.run(50, lambda count: time.monotonic() < deadline))  # noqa: B023
            held.append(held_when_idle())
    ordered = sorted(crowd.finished)
    grown = held[-1] / held[0] - 1
    print(
        f"{len(ordered)} answers, {crowd.left} left, p50 {ordered[len(ordered) // 2]:.3f} s, "
        f"p99 {ordered[len(ordered) * 99 // 100]:.3f} s, memory {grown:+.1%} of {held[0] >> 20} MiB"
    )
    assert grown < 0.03
    assert len(ordered) > 200


@contextmanager
def _a_process(folder: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """A server in a process of its own, whose memory nothing else changes: its address, and what it holds, in bytes."""
    errors = folder / "errors.txt"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "tests.test_server_load", str(folder)],
            cwd=Path(__file__).parent.parent,
            env=os.environ | FREED_AT_ONCE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        assert process.stdin and process.stdout
        said, ask = process.stdout, process.stdin

        def held() -> int:
            ask.write("\n")
            ask.flush()
            return int(said.readline() or pytest.fail(errors.read_text()[-2000:]))

        yield said.readline().strip(), held


def _serve(folder: Path) -> None:
    """Prints the address; then for each line read, when every request has ended, what this process holds."""
    served = service_of(fake_pipeline(folder, model=sensitive), sequences=Sequences(BUDGET), longest_queue=100)
    with on_a_port(served) as url:
        print(url, flush=True)
        for _ in sys.stdin:
            require_rest(served)
            gc.collect()
            print(psutil.Process().memory_info().rss, flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
