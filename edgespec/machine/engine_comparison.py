"""How fast each engine does what a user does with a model on this CPU: timed, and stored.

The engines read a prompt and write two answers to it, in turns, with the drafts that ``auto`` would use: a free text,
and an edit, which copies from the prompt. So what counts is all that a run takes: prompts, the widths that exact
numerics allows, the steps of the draft model, width switches. Of each engine the best turn counts, since its others
were disturbed. How far the turns differ says how much is noise. The time to load does not count: a session loads once.

Other programs slow the engines by different factors. So a result that they disturbed is measured again a day later, if
the machine is idle then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from statistics import mean
from time import time
from typing import Protocol, get_args

from edgespec import cache
from edgespec.machine import measurement_store
from edgespec.machine.other_programs import BUSY_CORES, Others, busy
from edgespec.types import Backend, Numerics

_READ, _WRITTEN, _COPIED = 500, 100, 100
"""Tokens of the use that engines are compared by: a question about a screen or two of code, answered in prose and with
an edit. docs/log/engines.md has what other numbers would choose."""
_TIMED, _MOST_S = 24, 1.5
"""tokens of the free text that is timed, and seconds after which an answer is cut. The edit has its own length."""
_TURNS = 2
_CLEAR = 1.0
"""By so much engines differ beyond all noise that was seen: another turn would choose the same. A turn that another
program lengthened by half does not reach it."""
_LEAST_NOISE = 0.02
"""Two turns may agree by luck."""
_LOOK_S, _AGAIN_S = 0.2, 24 * 3600
"""how long to look for other programs, and when to measure again what they disturbed"""


class Engine(Protocol):
    """A model and its drafters on an engine. edit: the text of the edit."""

    edit: list[int]

    def read(self) -> float:
        """Read the prompt. Returns the seconds of a token."""

    def write(self, text: Sequence[int], tokens: int, most_s: float) -> tuple[list[int], float]:
        """An answer that begins with ``text`` and has so many tokens, fewer after ``most_s``; and the seconds of each
        token."""


@dataclass(frozen=True)
class Pace:
    """Seconds of an engine for a token: of a prompt, of a free text and of an edit, both written with drafts."""

    read_s: float
    write_s: float
    copy_s: float

    def __post_init__(self) -> None:
        if not all(0 < seconds < inf for seconds in (self.read_s, self.write_s, self.copy_s)):
            raise ValueError("not the times of an engine")

    @property
    def use_s(self) -> float:
        """Seconds of the use that engines are compared by."""
        return _READ * self.read_s + _WRITTEN * self.write_s + _COPIED * self.copy_s

    def times(self, factor: float) -> Pace:
        return Pace(factor * self.read_s, factor * self.write_s, factor * self.copy_s)

    def __str__(self) -> str:
        return f"{1 / self.read_s:.0f}, {1 / self.write_s:.1f} and {1 / self.copy_s:.1f} tokens a second"


@dataclass(frozen=True)
class Comparison:
    """paces: by engine. Empty where OpenVINO is the only one that runs the model.
    noise: share by which the ratio of the engines differed between turns; 0 after one turn, which shows none.
    others: cores that other programs used meanwhile.
    """

    model: str
    numerics: Numerics
    paces: dict[str, Pace]
    noise: float = 0.0
    others: float = 0.0

    def __post_init__(self) -> None:
        if self.paces and set(self.paces) != set(get_args(Backend)):
            raise ValueError("not the paces of the engines")
        if not (0 <= self.noise < inf and 0 <= self.others < inf):
            raise ValueError("not a share, or not a number of cores")

    @property
    def tie(self) -> bool:
        """No engine is faster by more than noise."""
        seconds = [pace.use_s for pace in self.paces.values()]
        return not seconds or max(seconds) <= (1 + max(self.noise, _LEAST_NOISE)) * min(seconds)

    @property
    def faster(self) -> Backend:
        """Of a tie, the engine that reads faster. They differ most in that, so a second measurement finds the same."""
        if not self.paces:
            return "openvino"
        engines: tuple[Backend, ...] = get_args(Backend)
        paces, tie = self.paces, self.tie
        return min(engines, key=lambda name: paces[name].read_s if tie else paces[name].use_s)

    @property
    def noisy(self) -> bool:
        return self.others > BUSY_CORES

    def __str__(self) -> str:
        if not self.paces:
            return "openvino runs this model, onnxruntime does not"
        names = sorted(self.paces, key=self.faster.__ne__)  # the one that is taken first
        seconds = ", ".join(f"{name} {self.paces[name].use_s:.1f} s ({self.paces[name]})" for name in names)
        tie = "; a tie, so the one that reads faster" if self.tie else ""
        beside = f", beside other programs that took {self.others:.1f} cores" if self.noisy else ""
        noise = f", noise {max(self.noise, _LEAST_NOISE):.0%}" if self.noise else ""
        use = f"{_READ} tokens read, {_WRITTEN} written and {_COPIED} copied with drafts"
        return f"{use}: {seconds}{noise}{tie}{beside}"


def file_of(key: str) -> Path:
    """The file that stores a result. key: of weights, engines and numerics."""
    return measurement_store.file_of(f"engines-{cache.VERSIONS['engines']}", key)


def remembered(file: Path) -> Comparison | None:
    """The stored result, unless other programs disturbed it and are not running now."""
    found = measurement_store.read(file, Comparison)
    if found is None or not found.noisy or time() - file.stat().st_mtime < _AGAIN_S or busy(_LOOK_S):
        return found
    return None


def compare(
    model: str, numerics: Numerics, engines: Mapping[str, Engine], done: Callable[[float], None] = lambda share: None
) -> Comparison:
    """Time each engine. All write what the first one wrote. One turn is enough where an engine is clearly ahead.

    done: called with the share of the work that is done.
    """
    others = Others()
    free: list[int] = []
    edit: list[int] = []
    turns: list[dict[str, Pace]] = []
    for _ in range(_TURNS):
        paces = {}
        for name, engine in engines.items():
            read_s = engine.read()
            free, write_s = engine.write(free, len(free) or _TIMED, inf if free else _MOST_S)
            edit, copy_s = engine.write(edit or engine.edit, len(edit or engine.edit), inf if edit else _MOST_S)
            paces[name] = Pace(read_s, write_s, copy_s)
            done((len(turns) + len(paces) / len(engines)) / _TURNS)
        turns.append(paces)
        seconds = [pace.use_s for pace in paces.values()]
        if max(seconds) > (1 + _CLEAR) * min(seconds):
            if len(turns) < _TURNS:
                done(1.0)
            break
    ratios = [turn["onnxruntime"].use_s / turn["openvino"].use_s for turn in turns]
    noise = max(abs(ratio / mean(ratios) - 1) for ratio in ratios)
    return Comparison(
        model, numerics, {name: _best([turn[name] for turn in turns]) for name in engines}, noise, others.cores()
    )


def _best(turns: Sequence[Pace]) -> Pace:
    return Pace(*(min(getattr(turn, field.name) for turn in turns) for field in fields(Pace)))
