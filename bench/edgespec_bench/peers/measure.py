"""The measurements: every runtime answers every prompt in turns, each run next to one of the baseline.

A machine changes its speed within seconds, so a ratio compares two neighbouring runs. The baseline, edgespec auto, has
every third turn. Each other run is compared with the baseline's run just before or just after it. The order rotates
with each prompt.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

from edgespec_bench.peers.base import Run, WeightFormats
from edgespec_bench.peers.entries import BASELINE, Runtime
from edgespec_bench.peers.process import Process, RuntimeFailed, missing, start

SETTLE_S = 0.1
"""pause between turns: the threads of some engines spin on for a while after their last token"""
TTFT_TOKENS = (64, 512, 2000)
TTFT_REPEATS = 2
WARM_UP_TOKENS = 24
MEMORY_PROMPT, MEMORY_TOKENS = 2000, 16
CHAT_TURN, NO_REUSE = "turn 5", "turn 5 without reuse"
"""keys of ``Measured.ttft_s``: the last turn of a chat, and its prompt with another beginning"""
Start = Callable[[Runtime], Process]
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """The input of all measurements.

    prompts: category and token ids. filler: a long text that is cut into prompts of a given length.
    chats: for each conversation the prompts of its turns; the answers in between are given.
    """

    prompts: Sequence[tuple[str, list[int]]]
    filler: Sequence[int]
    chats: Sequence[Sequence[list[int]]]
    new_tokens: int
    pairs: int
    threads: int


@dataclass
class Measured:
    """What was measured of one runtime.

    failed: the reason in one line why it stopped or did not run.
    duplicate_of: another runtime with the same engine and settings. This one was not measured then.
    """

    failed: str | None = None
    duplicate_of: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    settings: str = ""
    precision: str = ""
    ttft_s: dict[str, list[float]] = field(default_factory=dict)
    """by prompt length in tokens, CHAT_TURN or NO_REUSE"""
    load_cold_s: float | None = None
    load_warm_s: float | None = None
    peak_mb: float | None = None


@dataclass(frozen=True)
class Record:
    """One answer. baseline_tok_per_s: of the baseline's run next to it."""

    name: str
    prompt: int
    category: str
    pair: int
    tok_per_s: float
    baseline_tok_per_s: float
    tokens: list[int]
    first: int
    proposed: int | None
    accepted: int | None
    forwards: int | None


@dataclass
class Results:
    measured: dict[str, Measured]
    records: list[Record] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def schedule(names: Sequence[str], turn: int, baseline: str = BASELINE) -> list[tuple[str, int]]:
    """The runtimes in the order of their turns, and for each turn the index of the baseline's turn next to it.

    >>> schedule(["Y", "a", "b", "c"], 0, "Y")
    [('Y', 0), ('a', 0), ('b', 3), ('Y', 3), ('c', 3)]
    >>> [name for name, _ in schedule(["Y", "a", "b", "c"], 1, "Y")]
    ['Y', 'b', 'c', 'Y', 'a']
    """
    others = [name for name in names if name != baseline]
    turn = turn % len(others) if others else 0
    others = others[turn:] + others[:turn]
    turns: list[tuple[str, int]] = [(baseline, 0)]
    for index, name in enumerate(others):
        if index % 2:  # the second one after a baseline's turn comes just before the next
            turns += [(name, len(turns) + 1), (baseline, len(turns) + 1)]
        else:
            turns.append((name, len(turns) - 1))
    return turns


def decode_speed(run: Run) -> float:
    """Tokens per second after the first ones."""
    return (len(run.tokens) - run.first) / max(run.total_s - run.ttft_s, 1e-9)


class Processes:
    """The running runtimes. One that fails is closed and its reason recorded; the others continue."""

    def __init__(self, measured: dict[str, Measured]) -> None:
        self.measured = measured
        self.running: dict[str, Process] = {}

    def load(
        self, name: str, weight_formats: WeightFormats, mode: str, threads: int, cache: Path | None
    ) -> dict[str, Any] | None:
        return self._attempt(name, lambda process: process.load(weight_formats, mode, threads, cache))

    def answer(self, name: str, prompt: Sequence[int], new_tokens: int) -> Run | None:
        sleep(SETTLE_S)
        return self._attempt(name, lambda process: process.generate(prompt, new_tokens))

    def peak_bytes(self, name: str) -> int | None:
        return self._attempt(name, Process.peak_bytes)

    def _attempt(self, name: str, what: Callable[[Process], T]) -> T | None:
        """The result of ``what``, or None if the runtime does not run or fails."""
        if name not in self.running:
            return None
        try:
            return what(self.running[name])
        except RuntimeFailed as error:
            self.measured[name].failed = str(error)
            self.running.pop(name).close()
            return None

    def close(self) -> None:
        for process in self.running.values():
            process.close()
        self.running.clear()


def run(runtimes: Sequence[Runtime], weight_formats: WeightFormats, task: Task, *, start: Start = start) -> Results:
    """All measurements in order: decoding, first tokens, chats; then load times and memory in new processes."""
    results = Results({runtime.name: Measured() for runtime in runtimes})
    present = [runtime for runtime in runtimes if _can_run(runtime, weight_formats, results.measured[runtime.name])]
    with _loaded(present, weight_formats, task, results, start) as processes:
        _decode(processes, task, results)
        _first_tokens(processes, task)
        _chat(processes, task)
    present = [runtime for runtime in present if not results.measured[runtime.name].duplicate_of]
    for number, runtime in enumerate(present):
        if results.measured[runtime.name].failed is None:
            _tell(f"load times: {number + 1} of {len(present)}")
            _load_times(runtime, weight_formats, task, results.measured[runtime.name], start)
    print(file=sys.stderr)
    return results


def _can_run(runtime: Runtime, weight_formats: WeightFormats, measured: Measured) -> bool:
    lacking = [
        weight_formats.missing.get(name, f"no {name}")
        for name in runtime.weight_formats
        if getattr(weight_formats, name) is None
    ]
    measured.failed = missing(runtime) or (lacking[0] if lacking else None)
    measured.precision = weight_formats.precision.get(runtime.weight_formats[0] if runtime.weight_formats else "ir", "")
    return measured.failed is None


@contextmanager
def _loaded(
    runtimes: Sequence[Runtime], weight_formats: WeightFormats, task: Task, results: Results, start: Start
) -> Iterator[Processes]:
    processes = Processes(results.measured)
    try:
        for runtime in runtimes:
            _tell(f"loading {runtime.name}")
            processes.running[runtime.name] = start(runtime)
            loaded = processes.load(runtime.name, weight_formats, runtime.mode, task.threads, None)
            if loaded:
                measured = results.measured[runtime.name]
                measured.versions, measured.settings = loaded["versions"], loaded["settings"]
                running = [other for other in runtimes if other.name in processes.running]
                measured.duplicate_of = duplicate_of(runtime, running, results)
                if measured.duplicate_of:
                    processes.running.pop(runtime.name).close()
                    continue
                processes.answer(runtime.name, task.prompts[0][1], WARM_UP_TOKENS)
        yield processes
    finally:
        processes.close()


def duplicate_of(runtime: Runtime, running: Sequence[Runtime], results: Results) -> str | None:
    """The running entry of edgespec with the same engine and drafts, if the requested engine is its own choice."""

    def kind(entry: Runtime) -> tuple[str, str, str]:
        return entry.module, entry.mode.rpartition(" ")[2], results.measured[entry.name].settings

    same = (other.name for other in running if other is not runtime and kind(other) == kind(runtime))
    return next(same, None) if runtime.module == "edgespec" else None


def _decode(processes: Processes, task: Task, results: Results) -> None:
    total = len(task.prompts) * task.pairs
    for number in range(total):
        prompt, pair = number // task.pairs, number % task.pairs
        category, ids = task.prompts[prompt]
        turns = schedule(list(processes.running), number)
        runs: list[Run | None] = []
        _tell(f"decoding: prompt {number + 1} of {total}")
        for turn, (name, _) in enumerate(turns):
            _tell(f"decoding: prompt {number + 1} of {total}", f", turn {turn + 1} of {len(turns)}")
            runs.append(processes.answer(name, ids, task.new_tokens))
        for (name, baseline_turn), answer in zip(turns, runs, strict=True):
            baseline = runs[baseline_turn]
            if answer and baseline:
                results.records.append(_record(name, prompt, category, pair, answer, baseline))
        if BASELINE not in processes.running:
            return  # without the baseline there are no ratios; the report gives the reason


def _first_tokens(processes: Processes, task: Task) -> None:
    """Each prompt is another part of the text, so no runtime can reuse a prefix.

    The prompt length of the memory measurement gets its last repeat there.
    """
    offset = 0
    for length in TTFT_TOKENS:
        repeats = TTFT_REPEATS - (length == MEMORY_PROMPT)
        for repeat in range(repeats):
            ids = list(task.filler[offset : offset + length])
            offset += length
            names = list(processes.running)
            _tell(f"first token of {length}, {repeat + 1} of {repeats}")
            for name in names[repeat::2] + names[1 - repeat :: 2]:
                _tell(f"first token of {length}, {repeat + 1} of {repeats}", f": {name}")
                answer = processes.answer(name, ids, 1)
                if answer:
                    processes.measured[name].ttft_s.setdefault(str(length), []).append(answer.ttft_s)


def _chat(processes: Processes, task: Task) -> None:
    for number, chat in enumerate(task.chats):
        _tell(f"chat {number + 1} of {len(task.chats)}")
        for name in list(processes.running):
            _tell(f"chat {number + 1} of {len(task.chats)}", f": {name}")
            answer = None
            for turn in chat:
                answer = processes.answer(name, turn, 1)
            without_reuse = processes.answer(name, [task.filler[number + 1], *chat[-1][1:]], 1)
            if answer and without_reuse:
                times = processes.measured[name].ttft_s
                times.setdefault(CHAT_TURN, []).append(answer.ttft_s)
                times.setdefault(NO_REUSE, []).append(without_reuse.ttft_s)


def _record(name: str, prompt: int, category: str, pair: int, answer: Run, baseline: Run) -> Record:
    return Record(
        name,
        prompt,
        category,
        pair,
        decode_speed(answer),
        decode_speed(baseline),
        answer.tokens,
        answer.first,
        answer.proposed,
        answer.accepted,
        answer.forwards,
    )


def _load_times(runtime: Runtime, weight_formats: WeightFormats, task: Task, measured: Measured, start: Start) -> None:
    """Load in a process with an empty cache for compiled models, and again in a second process.

    The second process also gives the peak memory and one more first token of a long prompt.
    """
    name = runtime.name
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        processes = Processes({name: measured})
        seconds = []
        try:
            for _ in range(2):
                processes.close()
                processes.running[name] = start(runtime)
                loaded = processes.load(name, weight_formats, runtime.mode, task.threads, Path(cache))
                seconds.append(float(loaded["load_s"]) if loaded else None)
            measured.load_cold_s, measured.load_warm_s = seconds
            processes.answer(name, task.prompts[0][1], WARM_UP_TOKENS)
            if answer := processes.answer(name, task.filler[:MEMORY_PROMPT], MEMORY_TOKENS):
                measured.ttft_s.setdefault(str(MEMORY_PROMPT), []).append(answer.ttft_s)
                peak = processes.peak_bytes(name)
                measured.peak_mb = peak and peak / 1e6
        finally:
            processes.close()


def _tell(what: str, detail: str = "") -> None:
    """Progress: on a terminal one line that changes; elsewhere one line a stage, without ``detail``."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}{detail}", end="", file=sys.stderr, flush=True)
    elif not detail:
        print(what, file=sys.stderr, flush=True)
