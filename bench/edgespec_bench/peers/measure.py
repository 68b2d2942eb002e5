"""Whose turn it is: every contender answers every prompt, in turns, each run next to one of the yardstick.

A machine changes its speed within seconds, so what is compared ran side by side: the yardstick (edgespec as it comes)
has every third turn, and a run is held against the yardstick's just before or just after it. The order moves on with
each prompt.
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

from edgespec_bench.peers.base import Forms, Run
from edgespec_bench.peers.entries import YARDSTICK, Contender
from edgespec_bench.peers.process import ContenderFailed, Process, missing, start

SETTLE_S = 0.1
"""between turns: the threads of some engines go on spinning for a while after their last token"""
TTFT_TOKENS = (64, 512, 2000)
TTFT_REPEATS = 2
WARM_UP_TOKENS = 24
MEMORY_PROMPT, MEMORY_TOKENS = 2000, 16
Start = Callable[[Contender], Process]
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """prompts: category and token ids. filler: a long text, for prompts of a given length. chats: conversations, each
    the prompts of its turns, the answers in between given."""

    prompts: Sequence[tuple[str, list[int]]]
    filler: Sequence[int]
    chats: Sequence[Sequence[list[int]]]
    new_tokens: int
    pairs: int
    threads: int


@dataclass
class Measured:
    """What is known of one contender. failed: one line of why there is no more of it. same_as: the contender that it
    turned out to be, so that it was not measured again."""

    failed: str | None = None
    same_as: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    settings: str = ""
    precision: str = ""
    ttft_s: dict[str, list[float]] = field(default_factory=dict)
    """by prompt length; "turn 5": of a chat; "turn 5 anew": the same prompt with nothing to reuse"""
    load_cold_s: float | None = None
    load_warm_s: float | None = None
    peak_mb: float | None = None


@dataclass(frozen=True)
class Record:
    """One answer. beside: tokens a second of the yardstick's answer next to it."""

    name: str
    prompt: int
    category: str
    pair: int
    tok_per_s: float
    beside: float
    tokens: list[int]
    first: int
    proposed: int | None
    accepted: int | None
    forwards: int | None


@dataclass
class Race:
    measured: dict[str, Measured]
    records: list[Record] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def schedule(names: Sequence[str], turn: int, yardstick: str = YARDSTICK) -> list[tuple[str, int]]:
    """Whose turns they are, and for each the index of the yardstick's turn it stands beside.

    >>> schedule(["Y", "a", "b", "c"], 0, "Y")
    [('Y', 0), ('a', 0), ('b', 3), ('Y', 3), ('c', 3)]
    >>> [name for name, _ in schedule(["Y", "a", "b", "c"], 1, "Y")]
    ['Y', 'b', 'c', 'Y', 'a']
    """
    others = [name for name in names if name != yardstick]
    turn = turn % len(others) if others else 0
    others = others[turn:] + others[:turn]
    turns: list[tuple[str, int]] = [(yardstick, 0)]
    for index, name in enumerate(others):
        if index % 2:  # the second behind a yardstick stands before the next one
            turns += [(name, len(turns) + 1), (yardstick, len(turns) + 1)]
        else:
            turns.append((name, len(turns) - 1))
    return turns


def decode_speed(run: Run) -> float:
    """Tokens a second behind what came first."""
    return (len(run.tokens) - run.first) / max(run.total_s - run.ttft_s, 1e-9)


class Stadium:
    """The running contenders. One that fails is shown out with its reason, and the others go on."""

    def __init__(self, measured: dict[str, Measured]) -> None:
        self.measured = measured
        self.running: dict[str, Process] = {}

    def load(self, name: str, forms: Forms, mode: str, threads: int, cache: Path | None) -> dict[str, Any] | None:
        return self._attempt(name, lambda process: process.load(forms, mode, threads, cache))

    def answer(self, name: str, prompt: Sequence[int], new_tokens: int) -> Run | None:
        sleep(SETTLE_S)
        return self._attempt(name, lambda process: process.generate(prompt, new_tokens))

    def peak_bytes(self, name: str) -> int | None:
        return self._attempt(name, Process.peak_bytes)

    def _attempt(self, name: str, what: Callable[[Process], T]) -> T | None:
        """What ``what`` returns, or None if the contender is not, or no longer, there."""
        if name not in self.running:
            return None
        try:
            return what(self.running[name])
        except ContenderFailed as error:
            self.measured[name].failed = str(error)
            self.running.pop(name).close()
            return None

    def close(self) -> None:
        for process in self.running.values():
            process.close()
        self.running.clear()


def run(contenders: Sequence[Contender], forms: Forms, task: Task, *, start: Start = start) -> Race:
    """All measurements, in order: decoding, first tokens, a chat; then load times and memory in fresh processes."""
    race = Race({contender.name: Measured() for contender in contenders})
    present = [contender for contender in contenders if _there(contender, forms, race.measured[contender.name])]
    with _loaded(present, forms, task, race, start) as stadium:
        _decode(stadium, task, race)
        _first_tokens(stadium, task)
        _chat(stadium, task)
    present = [one for one in present if not race.measured[one.name].same_as]
    for number, contender in enumerate(present):
        if race.measured[contender.name].failed is None:
            _tell(f"load times: {number + 1} of {len(present)}")
            _load_times(contender, forms, task, race.measured[contender.name], start)
    print(file=sys.stderr)
    return race


def _there(contender: Contender, forms: Forms, measured: Measured) -> bool:
    lacking = [forms.missing.get(form, f"no {form}") for form in contender.forms if getattr(forms, form) is None]
    measured.failed = missing(contender) or (lacking[0] if lacking else None)
    measured.precision = forms.precision.get(contender.forms[0] if contender.forms else "ir", "")
    return measured.failed is None


@contextmanager
def _loaded(contenders: Sequence[Contender], forms: Forms, task: Task, race: Race, start: Start) -> Iterator[Stadium]:
    stadium = Stadium(race.measured)
    try:
        for contender in contenders:
            _tell(f"loading {contender.name}")
            stadium.running[contender.name] = start(contender)
            loaded = stadium.load(contender.name, forms, contender.mode, task.threads, None)
            if loaded:
                measured = race.measured[contender.name]
                measured.versions, measured.settings = loaded["versions"], loaded["settings"]
                measured.same_as = twin(contender, [one for one in contenders if one.name in stadium.running], race)
                if measured.same_as:
                    stadium.running.pop(contender.name).close()
                    continue
                stadium.answer(contender.name, task.prompts[0][1], WARM_UP_TOKENS)
        yield stadium
    finally:
        stadium.close()


def twin(contender: Contender, running: Sequence[Contender], race: Race) -> str | None:
    """One that runs already and is the same: the engine that was asked for is the one that was chosen anyway."""

    def kind(one: Contender) -> tuple[str, str, str]:
        return one.module, one.mode.rpartition(" ")[2], race.measured[one.name].settings

    same = (one.name for one in running if one is not contender and kind(one) == kind(contender))
    return next(same, None) if contender.module == "edgespec" else None


def _decode(stadium: Stadium, task: Task, race: Race) -> None:
    total = len(task.prompts) * task.pairs
    for number in range(total):
        prompt, pair = number // task.pairs, number % task.pairs
        category, ids = task.prompts[prompt]
        turns = schedule(list(stadium.running), number)
        runs: list[Run | None] = []
        _tell(f"decoding: prompt {number + 1} of {total}")
        for turn, (name, _) in enumerate(turns):
            _tell(f"decoding: prompt {number + 1} of {total}", f", turn {turn + 1} of {len(turns)}")
            runs.append(stadium.answer(name, ids, task.new_tokens))
        for (name, beside), answer in zip(turns, runs, strict=True):
            yardstick = runs[beside]
            if answer and yardstick:
                race.records.append(_record(name, prompt, category, pair, answer, yardstick))
        if YARDSTICK not in stadium.running:
            return  # nothing to hold the others against: its reason is in the report


def _first_tokens(stadium: Stadium, task: Task) -> None:
    """Each prompt is another part of the text, so nothing can be reused. The last repeat of a prompt as long as that
    which memory is measured with comes there."""
    offset = 0
    for length in TTFT_TOKENS:
        repeats = TTFT_REPEATS - (length == MEMORY_PROMPT)
        for repeat in range(repeats):
            ids = list(task.filler[offset : offset + length])
            offset += length
            names = list(stadium.running)
            _tell(f"first token of {length}, {repeat + 1} of {repeats}")
            for name in names[repeat::2] + names[1 - repeat :: 2]:
                _tell(f"first token of {length}, {repeat + 1} of {repeats}", f": {name}")
                answer = stadium.answer(name, ids, 1)
                if answer:
                    stadium.measured[name].ttft_s.setdefault(str(length), []).append(answer.ttft_s)


def _chat(stadium: Stadium, task: Task) -> None:
    for number, chat in enumerate(task.chats):
        _tell(f"chat {number + 1} of {len(task.chats)}")
        for name in list(stadium.running):
            _tell(f"chat {number + 1} of {len(task.chats)}", f": {name}")
            answer = None
            for turn in chat:
                answer = stadium.answer(name, turn, 1)
            anew = [task.filler[number + 1], *chat[-1][1:]]  # another beginning
            again = stadium.answer(name, anew, 1)
            if answer and again:
                times = stadium.measured[name].ttft_s
                times.setdefault("turn 5", []).append(answer.ttft_s)
                times.setdefault("turn 5 anew", []).append(again.ttft_s)


def _record(name: str, prompt: int, category: str, pair: int, answer: Run, yardstick: Run) -> Record:
    return Record(
        name,
        prompt,
        category,
        pair,
        decode_speed(answer),
        decode_speed(yardstick),
        answer.tokens,
        answer.first,
        answer.proposed,
        answer.accepted,
        answer.forwards,
    )


def _load_times(contender: Contender, forms: Forms, task: Task, measured: Measured, start: Start) -> None:
    """A first process with an empty cache for compiled models, and a second one; the second shows its peak memory, and
    once more the first token of a long prompt."""
    name = contender.name
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        stadium = Stadium({name: measured})
        seconds = []
        try:
            for _ in range(2):
                stadium.close()
                stadium.running[name] = start(contender)
                loaded = stadium.load(name, forms, contender.mode, task.threads, Path(cache))
                seconds.append(float(loaded["load_s"]) if loaded else None)
            measured.load_cold_s, measured.load_warm_s = seconds
            stadium.answer(name, task.prompts[0][1], WARM_UP_TOKENS)
            if answer := stadium.answer(name, task.filler[:MEMORY_PROMPT], MEMORY_TOKENS):
                measured.ttft_s.setdefault(str(MEMORY_PROMPT), []).append(answer.ttft_s)
                peak = stadium.peak_bytes(name)
                measured.peak_mb = peak and peak / 1e6
        finally:
            stadium.close()


def _tell(what: str, detail: str = "") -> None:
    """Progress: one line that changes on a terminal; elsewhere a line for each stage, without details."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}{detail}", end="", file=sys.stderr, flush=True)
    elif not detail:
        print(what, file=sys.stderr, flush=True)
