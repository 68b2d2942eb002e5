"""How long an editor waits: lines of Python's library typed key by key, each key a request to a server on this machine.

The text before the hole has about 1,000 tokens and that behind it 200. Every key asks, though an editor waits for a
pause first and asks nothing while the typed text follows what is shown.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from statistics import median, quantiles
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from edgespec.bench.report import show
from edgespec.errors import EdgespecError, SettingError
from edgespec.pipeline import Pipeline
from edgespec.text.tokenizer import Tokenizer
from edgespec_bench.holes import MODULES, Hole, cut

PREFIX_TOKENS, SUFFIX_TOKENS = 1000, 200
_SEED = 1
"""holes at the start of their line"""
_LINES = 300
"""around a hole, more than its tokens"""
_SLOT = "bench-infill"


@dataclass(frozen=True)
class Request:
    """seconds: from the request until its answer is here. read, written: tokens. read_s, write_s: by the server."""

    seconds: float
    read: int
    read_s: float
    written: int
    write_s: float


def bench_latency(pipeline: Pipeline, *, lines: int = 4, keys: int = 12, new_tokens: int = 24) -> None:
    """lines: to type, in a file each. keys: of each line."""
    holes = fitting(pipeline.tokenizer, lines)
    with served(pipeline) as netloc, closing(Editor(netloc, new_tokens)) as editor:
        kinds = ("a file's first", "a key", "the next line's first", "the next line's first behind an anchor")
        asked: dict[str, list[Request]] = {kind: [] for kind in kinds}
        for hole in holes:
            typed, rest = hole.typed, hole.missing
            asked["a file's first"].append(editor.ask(hole.prefix, typed, hole.suffix))
            for count in range(1, min(keys, len(rest)) + 1):
                asked["a key"].append(editor.ask(hole.prefix, typed + rest[:count], hole.suffix))
            line = f"{typed}{rest}\n"
            anchored = editor.ask(hole.prefix, line + typed, hole.suffix)
            asked["the next line's first behind an anchor"].append(anchored)
            asked["the next line's first"].append(editor.ask(hole.prefix + line, typed, hole.suffix))
        editor.keep_over_a_restart()
        with closing(Editor(netloc, new_tokens)) as reloaded:
            asked["again after a reload"] = [reloaded.ask(hole.prefix + line, typed, hole.suffix)]
    show(
        f"infill latency, {pipeline.bundle.name}, {len(holes)} files, at most {new_tokens} tokens",
        ["request", "number", "p50 ms", "p95 ms", "tokens read", "read ms", "tokens written", "write ms", "rest ms"],
        [(name, *_row(requests)) for name, requests in asked.items()],
        {"requests": {name: [vars(each) for each in requests] for name, requests in asked.items()}},
    )


def _row(requests: Sequence[Request]) -> list[object]:
    """Medians, but for p95."""
    totals = [1e3 * each.seconds for each in requests]
    return [
        len(requests),
        median(totals),
        quantiles(totals, n=20, method="inclusive")[-1] if len(totals) > 1 else totals[0],
        median(each.read for each in requests),
        1e3 * median(each.read_s for each in requests),
        median(each.written for each in requests),
        1e3 * median(each.write_s for each in requests),
        1e3 * median(each.seconds - each.read_s - each.write_s for each in requests),
    ]


def fitting(tokenizer: Tokenizer, count: int) -> list[Hole]:
    """Holes with so much text around them, of the first modules that have one."""
    found = []
    for module in MODULES:
        hole = cut(module, _SEED, before=_LINES, behind=_LINES)
        prefix = within(tokenizer, hole.prefix.splitlines(keepends=True)[::-1], PREFIX_TOKENS)
        suffix = within(tokenizer, hole.suffix.splitlines(keepends=True), SUFFIX_TOKENS)
        if prefix is not None and suffix is not None:
            found.append(Hole(module, _SEED, "".join(prefix[::-1]), hole.typed, "".join(suffix), hole.missing))
        if len(found) == count:
            return found
    raise SettingError("lines", got=count, allowed=f"1 to {len(found)}, the modules that are long enough")


def within(tokenizer: Tokenizer, lines: Sequence[str], most: int) -> list[str] | None:
    """As many of the first lines as have so many tokens. None if all of them have fewer."""
    used = 0
    for number, line in enumerate(lines):
        used += len(tokenizer.encode(line))
        if used > most:
            return list(lines[:number])
    return None


class Editor:
    """Asks as an editor's extension does, over one connection."""

    def __init__(self, netloc: str, new_tokens: int) -> None:
        self._connection = HTTPConnection(netloc)
        self._new_tokens = new_tokens

    def ask(self, prefix: str, typed: str, suffix: str) -> Request:
        began = perf_counter()
        answer = self._post(
            "/infill",
            {
                "id_slot": 0,
                "input_prefix": prefix,
                "prompt": typed,
                "input_suffix": suffix,
                "n_predict": self._new_tokens,
                "temperature": 0,
            },
        )
        seconds = perf_counter() - began
        timings = answer["timings"]
        return Request(
            seconds,
            timings["prompt_n"],
            timings["prompt_ms"] / 1e3,
            timings["predicted_n"],
            timings["predicted_ms"] / 1e3,
        )

    def keep_over_a_restart(self) -> None:
        """What the server has read is written to a file, forgotten, and taken back from there."""
        from edgespec.server.slot_files import path_of

        try:
            for action in ("save", "erase", "restore"):
                self._post(f"/slots/0?action={action}", {"filename": _SLOT})
        finally:
            path_of(_SLOT).unlink(missing_ok=True)

    def close(self) -> None:
        self._connection.close()

    def _post(self, path: str, fields: dict[str, Any]) -> dict[str, Any]:
        self._connection.request("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise EdgespecError(f"{path}: {answer['error']['message']}")
        return answer


@contextmanager
def served(pipeline: Pipeline) -> Iterator[str]:
    """The server with this model alone, on a free port: its host and port."""
    from edgespec.server.address import Address
    from edgespec.server.app import application
    from edgespec.server.listen import Listener
    from edgespec.server.residents import Offer, Residents
    from edgespec.server.service import Service

    name = pipeline.bundle.name
    service = Service(Residents({name: Offer(name=name, load=lambda: pipeline)}))
    address = Address("127.0.0.1", 0)
    listener = Listener(application(service), service, address)
    thread = threading.Thread(target=lambda: asyncio.run(listener.run()), daemon=True)
    thread.start()
    try:
        yield urlsplit(address.url).netloc
    finally:
        listener.stop()
        thread.join()
