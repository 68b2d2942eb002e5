"""The measurements: one runtime after the other within each round, each in a process of its own.

A visit starts a runtime's process, loads the model, warms up, asks the prompts of the round and ends the process. So
one model is in memory at a time, as large models need it. A machine changes its speed within minutes, so a ratio
compares two near visits: the baseline, edgespec auto, is visited at the beginning of every round and again after
``GROUP`` others. The order rotates with the round.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

from edgespec_bench.peers.base import Run, WeightFormats
from edgespec_bench.peers.entries import BASELINE, Runtime
from edgespec_bench.peers.process import Process, RuntimeFailed, missing, start

SETTLE_S = 0.1
"""pause between answers: the threads of some engines spin on for a while after their last token"""
ROUNDS = 2
"""they share the prompts: more of them compare nearer neighbours, and load every model once more"""
GROUP = 8
TTFT_TOKENS = (64, 2000)
TTFT_REPEATS = 2
WARM_UP_TOKENS = 24
MEMORY_PROMPT = 2000
CHAT_TURN, NO_REUSE = "turn 5", "turn 5 without reuse"
"""keys of ``Measured.ttft_s``: the last turn of a chat, and its prompt with another beginning"""
Start = Callable[[Runtime], Process]
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """The input of all measurements.

    prompts: category and token ids. filler: a long text that is cut into prompts of a given length.
    chat: the prompts of its turns; the answers in between are given. Empty: no chat.
    ends: tokens that end a text. What a runtime writes behind one does not count.
    """

    prompts: Sequence[tuple[str, list[int]]]
    filler: Sequence[int]
    chat: Sequence[list[int]]
    new_tokens: int
    pairs: int
    threads: int
    ends: frozenset[int] = frozenset()

    @property
    def warm_up(self) -> Sequence[int]:
        return self.filler[-64:]


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
    """One answer, up to its end token. baseline_tok_per_s: of the baseline's near run.

    proposed, accepted, forwards are of the whole answer, and so is decoded, the tokens after the first ones.
    """

    name: str
    prompt: int
    category: str
    round: int
    tok_per_s: float
    baseline_tok_per_s: float
    tokens: list[int]
    decoded: int
    proposed: int | None
    accepted: int | None
    forwards: int | None
    gaps_s: list[float] = field(default_factory=list)


@dataclass
class Results:
    measured: dict[str, Measured]
    records: list[Record] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rounds(task: Task) -> list[list[int]]:
    """The indexes of each round's prompts: the nth of every category go to round n, modulo their number."""
    seen: Counter[str] = Counter()
    number_of = []
    for category, _ in task.prompts:
        number_of.append(seen[category])
        seen[category] += 1
    count = min(ROUNDS, max(number_of) + 1)
    once = [[index for index, nth in enumerate(number_of) if nth % count == turn] for turn in range(count)]
    return once * task.pairs


def schedule(names: Sequence[str], turn: int, baseline: str = BASELINE, group: int = GROUP) -> list[tuple[str, int]]:
    """The runtimes in the order of their turns, and for each turn the index of the baseline's nearest turn.

    >>> schedule(["Y", "a", "b", "c"], 0, "Y", 2)
    [('Y', 0), ('a', 0), ('b', 3), ('Y', 3), ('c', 3)]
    >>> [name for name, _ in schedule(["Y", "a", "b", "c"], 1, "Y", 2)]
    ['Y', 'b', 'c', 'Y', 'a']
    """
    others = [name for name in names if name != baseline]
    turn = turn % len(others) if others else 0
    others = others[turn:] + others[:turn]
    turns: list[tuple[str, int]] = [(baseline, 0)]
    for begin in range(0, len(others), group):
        part = others[begin : begin + group]
        before, after = len(turns) - 1, len(turns) + len(part)
        turns += [(name, before if index < group / 2 else after) for index, name in enumerate(part)]
        if len(part) > group / 2:
            turns.append((baseline, after))
    return turns


def decode_speed(run: Run) -> float:
    """Tokens per second after the first ones."""
    return (len(run.tokens) - run.first) / max(run.total_s - run.ttft_s, 1e-9)


class Visit:
    """A runtime in a process of its own, for one visit. Once it fails, ``measured`` has the reason and all is None."""

    def __init__(self, runtime: Runtime, measured: Measured, start: Start) -> None:
        self._runtime = runtime
        self._measured = measured
        self._process = start(runtime)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.close()

    def load(self, weight_formats: WeightFormats, threads: int, cache: Path | None) -> float | None:
        """Seconds of loading, imports included."""
        loaded = self._attempt(lambda process: process.load(weight_formats, self._runtime.mode, threads, cache))
        if loaded is None:
            return None
        self._measured.versions, self._measured.settings = loaded["versions"], loaded["settings"]
        return float(loaded["load_s"])

    def answer(self, prompt: Sequence[int], new_tokens: int) -> Run | None:
        sleep(SETTLE_S)
        return self._attempt(lambda process: process.generate(prompt, new_tokens))

    def first_token(self, what: str, prompt: Sequence[int]) -> None:
        if answer := self.answer(prompt, 1):
            self._measured.ttft_s.setdefault(what, []).append(answer.ttft_s)

    def peak_bytes(self) -> int | None:
        return self._attempt(Process.peak_bytes)

    def _attempt(self, what: Callable[[Process], T]) -> T | None:
        if self._measured.failed is not None:
            return None
        try:
            return what(self._process)
        except RuntimeFailed as error:
            self._measured.failed = str(error)
            return None


def run(runtimes: Sequence[Runtime], weight_formats: WeightFormats, task: Task, *, start: Start = start) -> Results:
    """All measurements. A runtime that fails is not visited again; the others continue."""
    results = Results({runtime.name: Measured() for runtime in runtimes})
    present = [runtime for runtime in runtimes if _can_run(runtime, weight_formats, results.measured[runtime.name])]
    _prepare(present, weight_formats, task, results, start)
    visits = _Visits(weight_formats, task, results, start)
    all_rounds = rounds(task)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as caches:
        for number, prompts in enumerate(all_rounds):
            here = [runtime for runtime in present if _goes_on(results.measured[runtime.name])]
            turns = schedule([r.name for r in here], number * -(-len(here) // len(all_rounds)))
            by_name = {runtime.name: runtime for runtime in here}
            if BASELINE not in by_name:
                break  # without the baseline there are no ratios; the report gives the reason
            found: list[dict[int, Run]] = []
            for turn, (name, _) in enumerate(turns):
                _tell(f"round {number + 1} of {len(all_rounds)}, turn {turn + 1} of {len(turns)}: {name}")
                again = any(before == name for before, _ in turns[:turn])
                found.append(visits.visit(by_name[name], prompts, number, Path(caches) / name, again=again))
            for (name, baseline_turn), answers in zip(turns, found, strict=True):
                for prompt in answers.keys() & found[baseline_turn].keys():
                    results.records.append(
                        _record(name, prompt, task, number, answers[prompt], found[baseline_turn][prompt])
                    )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return results


def _goes_on(measured: Measured) -> bool:
    return measured.failed is None and measured.duplicate_of is None


def _can_run(runtime: Runtime, weight_formats: WeightFormats, measured: Measured) -> bool:
    lacking = [
        weight_formats.missing.get(name, f"no {name}")
        for name in runtime.weight_formats
        if getattr(weight_formats, name) is None
    ]
    measured.failed = missing(runtime) or (lacking[0] if lacking else None)
    measured.precision = weight_formats.precision.get(runtime.weight_formats[0] if runtime.weight_formats else "ir", "")
    return measured.failed is None


def _prepare(
    runtimes: Sequence[Runtime], weight_formats: WeightFormats, task: Task, results: Results, start: Start
) -> None:
    """Let edgespec do its one-time work (conversions, exact widths, measured costs), and find duplicate entries."""
    loaded: list[Runtime] = []
    for runtime in runtimes:
        if runtime.module != "edgespec":
            continue
        _tell(f"preparing {runtime.name}")
        measured = results.measured[runtime.name]
        with Visit(runtime, measured, start) as visit:
            visit.load(weight_formats, task.threads, None)
            measured.duplicate_of = duplicate_of(runtime, loaded, results)
            if _goes_on(measured):
                visit.answer(task.warm_up, WARM_UP_TOKENS)
                loaded.append(runtime)


def duplicate_of(runtime: Runtime, loaded: Sequence[Runtime], results: Results) -> str | None:
    """The entry of edgespec before it with the same engine and drafts, if the requested engine is its own choice."""

    def kind(entry: Runtime) -> tuple[str, str, str]:
        return entry.module, entry.mode.rpartition(" ")[2], results.measured[entry.name].settings

    same = (other.name for other in loaded if other is not runtime and kind(other) == kind(runtime))
    return next(same, None) if runtime.module == "edgespec" else None


@dataclass(frozen=True)
class _Visits:
    weight_formats: WeightFormats
    task: Task
    results: Results
    start: Start

    def visit(
        self, runtime: Runtime, prompts: Sequence[int], number: int, cache: Path, *, again: bool
    ) -> dict[int, Run]:
        """The answers to these prompts. In its first rounds a runtime also gets the prompts of ``_first_tokens``.

        again: another visit of the baseline in this round, which asks the prompts only.
        """
        measured, task = self.results.measured[runtime.name], self.task
        if measured.failed is not None:
            return {}
        with Visit(runtime, measured, self.start) as visit:
            cache.mkdir(parents=True, exist_ok=True)
            load_s = visit.load(self.weight_formats, task.threads, cache)
            if measured.load_cold_s is None:
                measured.load_cold_s = load_s
            elif measured.load_warm_s is None:
                measured.load_warm_s = load_s
            visit.answer(task.warm_up, WARM_UP_TOKENS)
            answers = {index: visit.answer(task.prompts[index][1], task.new_tokens) for index in prompts}
            if not again:
                self._first_tokens(runtime, visit, measured, number)
        return {index: answer.until(task.ends) for index, answer in answers.items() if answer}

    def _first_tokens(self, runtime: Runtime, visit: Visit, measured: Measured, number: int) -> None:
        """Each prompt is another part of the text, so no runtime can reuse a prefix.

        Round 0 has the long prompt, after which the process has its peak memory. The last round has the chat.
        """
        filler, chat = self.task.filler, self.task.chat
        if number == 0:
            begin = 0
            for length in TTFT_TOKENS:
                for _ in range(1 if length == MEMORY_PROMPT else TTFT_REPEATS):
                    visit.first_token(str(length), filler[begin : begin + length])
                    begin += length
            peak = visit.peak_bytes()
            measured.peak_mb = peak and peak / 1e6
        if number == len(rounds(self.task)) - 1 and chat:
            for prompt in chat[:-1]:
                visit.answer(prompt, 1)
            visit.first_token(CHAT_TURN, chat[-1])
            if runtime.name == BASELINE:
                visit.first_token(NO_REUSE, [filler[1], *chat[-1][1:]])


def _record(name: str, prompt: int, task: Task, number: int, answer: Run, baseline: Run) -> Record:
    return Record(
        name,
        prompt,
        task.prompts[prompt][0],
        number,
        decode_speed(answer),
        decode_speed(baseline),
        answer.tokens,
        task.new_tokens - answer.first,
        answer.proposed,
        answer.accepted,
        answer.forwards,
        answer.gaps_s,
    )


def _tell(what: str) -> None:
    """Progress: on a terminal one line that changes; elsewhere one line each."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)
    else:
        print(what, file=sys.stderr, flush=True)
