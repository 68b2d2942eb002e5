"""What the server adds to the library: to a request and each batch of tokens, before the first byte, at rest, at start.

One loaded model fills one hole again and again, in turns by a call of the library and over HTTP, without drafts. Both
run the same forwards. The client is a process of its own, as real ones are (``server_client``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from statistics import median
from time import perf_counter
from typing import Any

from edgespec.bench.report import show
from edgespec.errors import BackendError
from edgespec.pipeline import Pipeline
from edgespec_bench.holes import Hole
from edgespec_bench.infill_latency import fitting, served
from edgespec_bench.server_client import Client

_BATCHES = 24
"""forwards of a long answer; a short one has one"""
_REST_S = 3.0
"""of an idle server, whose time of the CPU is taken"""
_START_PAIRS = 5
_READY = ": ready."
_PROMPT = "What is the capital of France?"


def bench_server(pipeline: Pipeline, *, pairs: int = 15, starts: Mapping[str, Any] | None = None) -> None:
    """pairs: interleaved repetitions. starts: options of ``edgespec serve`` and ``run``, to time their starts, too."""
    [hole] = fitting(pipeline.tokenizer, 1)
    with served(pipeline) as netloc, closing(Client(netloc)) as client:
        added = _added(pipeline, hole, client, pairs)
        first_byte_s = [_first_byte_s(client, hole, number) for number in range(pairs + 1)][1:]
        idle = _idle()
    figures = {**added, "first_byte_ms": 1e3 * median(first_byte_s), "idle_cpu_ms_a_second": idle}
    rows = [
        ("added to a request, ms", figures["request_ms"], "<= 2"),
        ("added to a batch of tokens, ms", figures["batch_ms"], "<= 1"),
        ("a batch by the library, ms", figures["library_batch_ms"], ""),
        ("first byte of /infill, new connection, ms", figures["first_byte_ms"], "<= 5"),
        ("CPU of an idle server, ms a second", figures["idle_cpu_ms_a_second"], "0"),
    ]
    if starts is not None:
        served_s, ran_s = _starts(starts)
        figures |= {"serve_ready_s": median(served_s), "run_loaded_s": median(ran_s)}
        figures["ready_later_s"] = median(a - b for a, b in zip(served_s, ran_s, strict=True))
        rows += [
            ("from the shell until the server is ready, s", figures["serve_ready_s"], ""),
            ("beyond what run takes to load, s", figures["ready_later_s"], "<= 0.3"),
        ]
    title = f"server, {pipeline.bundle.name} on {pipeline.target.capabilities.backend}"
    show(title, ["figure", "measured", "goal"], rows, figures | {"pairs": pairs})


def _added(pipeline: Pipeline, hole: Hole, client: Client, pairs: int) -> dict[str, float]:
    """In ms. A short answer shows what a request costs beside its forwards, and a long one what each more costs."""
    rest_s: list[float] = []
    batch_s: dict[str, list[float]] = {"library": [], "server": []}
    for number in range(pairs + 1):
        spent = {}
        for way in ("library", "server") if number % 2 else ("server", "library"):
            for tokens in (1, _BATCHES):
                spent[way, tokens] = (
                    _by_library(pipeline, hole, tokens) if way == "library" else _by_server(client, hole, tokens)
                )
        if number:  # the first pair makes kernels
            rest_s.append(spent["server", 1][1] - spent["library", 1][1])
            for way, found in batch_s.items():
                found.append((spent[way, _BATCHES][0] - spent[way, 1][0]) / (_BATCHES - 1))
    added_s = [a - b for a, b in zip(batch_s["server"], batch_s["library"], strict=True)]
    return {
        "request_ms": 1e3 * median(rest_s),
        "batch_ms": 1e3 * median(added_s),
        "library_batch_ms": 1e3 * median(batch_s["library"]),
    }


def _by_library(pipeline: Pipeline, hole: Hole, tokens: int) -> tuple[float, float]:
    """Seconds of an answer, and of that what no forward took."""
    began = perf_counter()
    result = pipeline.infill(
        hole.prefix + hole.typed,
        hole.suffix,
        anchor=len(hole.prefix),
        max_new_tokens=tokens,
        num_draft_tokens=0,
        ignore_eos=True,
    )
    seconds = perf_counter() - began
    stats = result.stats
    return seconds, seconds - stats.prefill_s - sum(r.draft_s + r.target_s + r.host_s for r in stats.rounds)


def _by_server(client: Client, hole: Hole, tokens: int) -> tuple[float, float]:
    """The same over HTTP, as a stream."""
    fields = {"n_predict": tokens, "num_draft_tokens": 0, "ignore_eos": True, "temperature": 0}
    seconds, answer = client.ask("/infill", _of(hole) | fields)
    timings = answer["timings"]
    return seconds, seconds - (timings["prompt_ms"] + timings["predicted_ms"]) / 1e3


def _first_byte_s(client: Client, hole: Hole, number: int) -> float:
    """Of one more key, on a new connection. The first answer is awaited, as it reads the whole prompt."""
    fields = _of(hole, hole.missing[:number]) | {"n_predict": _BATCHES}
    seconds = client.first_byte_s("/infill", fields, whole=not number)
    time.sleep(0.2)  # it stops within a round
    return seconds


def _of(hole: Hole, more: str = "") -> dict[str, Any]:
    """Fields of every request. more: what was typed since."""
    return {
        "input_prefix": hole.prefix,
        "prompt": hole.typed + more,
        "input_suffix": hole.suffix,
        "stream": True,
        "id_slot": 0,
    }


def _idle() -> float:
    """Milliseconds of CPU a second, of this whole process."""
    time.sleep(1.0)  # threads of the engine spin a moment for more work
    began_s, cpu_s = perf_counter(), time.process_time()
    time.sleep(_REST_S)
    return 1e3 * (time.process_time() - cpu_s) / (perf_counter() - began_s)


def _starts(options: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Seconds until a server is ready, and until ``run`` has loaded, in turns. The first of each warms caches."""
    words = [word for name, value in options.items() if value for word in (f"--{name}", str(value))]
    served_s, ran_s = [], []
    with tempfile.TemporaryDirectory() as compiled:
        env = _as_installed(compiled)
        for _ in range(_START_PAIRS + 1):
            served_s.append(_ready_s(words, env))
            ran_s.append(_loaded_s(words, env))
    return served_s[1:], ran_s[1:]


def _as_installed(folder: str) -> dict[str, str]:
    """An environment in which Python keeps the code that it compiles, as pip does when it installs. A checkout may have
    none, and the server has more of it than ``run``."""
    env = os.environ | {"PYTHONPYCACHEPREFIX": folder}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env


def _ready_s(words: list[str], env: Mapping[str, str]) -> float:
    with tempfile.TemporaryDirectory() as data:
        began = perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "edgespec", "serve", "--port", "0", *words],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**env, "EDGESPEC_DATA": data},
        )
        assert process.stderr is not None
        said = next((line for line in process.stderr if _READY in line), "")
        seconds = perf_counter() - began
        process.terminate()
        process.communicate()
    if not said:
        raise BackendError("edgespec serve did not become ready")
    return seconds


def _loaded_s(words: list[str], env: Mapping[str, str]) -> float:
    """Until ``run`` has its first token, without the time from its prompt to there."""
    began = perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgespec", "run", _PROMPT, "-n", "1", "--json", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = perf_counter() - began
    process.communicate()
    if not line:
        raise BackendError("edgespec run wrote nothing")
    return seconds - float(json.loads(line)["ttft_s"])
