"""How long an editor waits: lines of Python's library typed key by key, each key a request to a server on this machine.

The text before the hole has about 1,000 tokens and that behind it 200. Every key asks, though an editor waits for a
pause first and asks nothing while the typed text follows what is shown. Every third key asks again without drafts: that
is the speed of the machine alone.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from statistics import median, quantiles
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from edgespec.bench.report import show, show_table
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
_SAVED_BYTES = 1 << 30
"""of earlier prompts that the server keeps, about what ``edgespec serve`` gives them"""
_PLAIN_KEYS = 3
"""of so many keys one is asked again without drafts"""
_SLOWEST = 6
"""keys that are shown one by one"""


@dataclass(frozen=True)
class Request:
    """seconds: from the request until its answer is here. read, written: tokens. read_s, write_s: by the server.

    rounds: what each forward did, as the server tells it (``server.figures.rounds``).
    """

    seconds: float
    read: int
    read_s: float
    written: int
    write_s: float
    rounds: list[dict[str, Any]]

    @property
    def rest_s(self) -> float:
        """Neither reading nor writing: HTTP, the queue, the tokens of the prompt."""
        return self.seconds - self.read_s - self.write_s


def bench_latency(pipeline: Pipeline, *, lines: int = 4, keys: int = 12, new_tokens: int = 24) -> None:
    """lines: to type, in a file each. keys: of each line."""
    holes = fitting(pipeline.tokenizer, lines)
    with served(pipeline) as netloc, closing(Editor(netloc, new_tokens)) as editor:
        kinds = (
            *("a file's first", "a key", "a key without drafts"),
            *("the next line's first", "the next line's first behind an anchor"),
        )
        asked: dict[str, list[Request]] = {kind: [] for kind in kinds}
        for hole in holes:
            typed, rest = hole.typed, hole.missing
            asked["a file's first"].append(editor.ask(hole.prefix, typed, hole.suffix))
            for count in range(1, min(keys, len(rest)) + 1):
                asked["a key"].append(editor.ask(hole.prefix, typed + rest[:count], hole.suffix))
                if count % _PLAIN_KEYS == 0:  # behind it, so that it adds nothing to what drafts are copied from
                    plain = editor.ask(hole.prefix, typed + rest[:count], hole.suffix, num_draft_tokens=0)
                    asked["a key without drafts"].append(plain)
            line = f"{typed}{rest}\n"
            anchored = editor.ask(hole.prefix, line + typed, hole.suffix)
            asked["the next line's first behind an anchor"].append(anchored)
            asked["the next line's first"].append(editor.ask(hole.prefix + line, typed, hole.suffix))
        editor.keep_over_a_restart()
        with closing(Editor(netloc, new_tokens)) as reloaded:
            asked["again after a reload"] = [reloaded.ask(hole.prefix + line, typed, hole.suffix)]
    slowest = sorted(asked["a key"], key=lambda each: -each.seconds)[:_SLOWEST]
    show_table(
        "the slowest keys",
        [
            "ms",
            "tokens read",
            "read ms",
            "tokens written",
            "write ms",
            "rest ms",
            "forwards",
            "slowest ms",
            "drafted by",
        ],
        [_parts(each) for each in slowest],
    )
    show(
        f"infill latency, {pipeline.bundle.name}, {len(holes)} files, at most {new_tokens} tokens",
        [
            *("request", "number", "p50 ms", "p95 ms", "tokens read", "read ms", "tokens written", "write ms"),
            *("rest ms", "forwards"),
        ],
        [(name, *_row(requests)) for name, requests in asked.items() if requests],
        {
            "backend": pipeline.target.capabilities.backend,
            "requests": {name: [vars(each) for each in requests] for name, requests in asked.items()},
        },
    )


def _row(requests: Sequence[Request]) -> list[object]:
    """Medians, but for p95."""
    totals = [1e3 * each.seconds for each in requests]
    return [
        len(requests),
        median(totals),
        quantiles(totals, n=20, method="inclusive")[-1] if len(totals) > 1 else totals[0],
        *(median(values) for values in zip(*(_numbers(each) for each in requests), strict=True)),
    ]


def _numbers(request: Request) -> tuple[float, ...]:
    return (
        request.read,
        1e3 * request.read_s,
        request.written,
        1e3 * request.write_s,
        1e3 * request.rest_s,
        len(request.rounds),
    )


def _parts(request: Request) -> list[object]:
    """Of one request, and who drafted in how many of its forwards."""
    drafted = Counter(each["drafter"] or "nobody" for each in request.rounds)
    slowest = max((each["seconds"] for each in request.rounds), default=0.0)
    by = ", ".join(f"{name} {count}" for name, count in drafted.most_common())
    return [1e3 * request.seconds, *_numbers(request), 1e3 * slowest, by]


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

    def ask(self, prefix: str, typed: str, suffix: str, **fields: Any) -> Request:
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
                "edgespec_rounds": True,
                **fields,
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
            answer["edgespec"]["rounds"],
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
        answer: dict[str, Any] = json.loads(response.read().rsplit(b"data: ", 1)[-1])  # of a stream the last event
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
    from edgespec.server.sequences import Sequences
    from edgespec.server.service import Service

    name = pipeline.bundle.name
    offer = Offer(name=name, load=lambda: pipeline)
    service = Service(Residents({name: offer}, Sequences(_SAVED_BYTES)))
    address = Address("127.0.0.1", 0)
    listener = Listener(application(service), service, address)
    thread = threading.Thread(target=lambda: asyncio.run(listener.run()), daemon=True)
    thread.start()
    try:
        yield urlsplit(address.url).netloc
    finally:
        listener.stop()
        thread.join()
