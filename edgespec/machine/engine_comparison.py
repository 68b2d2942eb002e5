"""How fast each engine answers with a model on this CPU: timed, and stored.

The engines read a prompt, and then write the same answer in turns, with the drafts that ``auto`` would use. So what
counts is all that a run takes: the widths that exact numerics allows, the steps of the draft model, width switches. Of
each engine the best turn counts, since its others were disturbed. How far the turns differ says how much is noise.

Other programs slow the engines by different factors. So a result that they disturbed is measured again a day later, if
the machine is idle then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import mean
from time import time
from typing import Protocol, get_args

from edgespec import cache
from edgespec.machine import measurement_store
from edgespec.machine.other_programs import BUSY_CORES, Others, busy
from edgespec.types import Backend, Numerics

_PROMPT, _ANSWER = 128, 256
"""tokens that are read and written in what engines are compared by"""
_WRITTEN, _MOST_S = 40, 2.0
"""tokens of the answer that is timed, and seconds after which it is cut"""
_TURNS = 2
_LEAST_NOISE = 0.02
"""Two turns may agree by luck."""
_LOOK_S, _AGAIN_S = 0.2, 24 * 3600
"""how long to look for other programs, and when to measure again what they disturbed"""


class Engine(Protocol):
    """A model and its drafters on an engine.

    load_s: seconds that it took to load the model. read_s: seconds of a token of a prompt.
    """

    load_s: float
    read_s: float

    def write(self, text: Sequence[int], tokens: int, most_s: float) -> tuple[list[int], float]:
        """An answer that begins with ``text`` and has so many tokens, fewer after ``most_s``; and the seconds of each
        token."""


@dataclass(frozen=True)
class Pace:
    """Seconds of an engine: to read a token of a prompt, to write one with drafts, to load the target."""

    read_s: float
    write_s: float
    load_s: float

    def __post_init__(self) -> None:
        if not all(0 < seconds < inf for seconds in (self.read_s, self.write_s, self.load_s)):
            raise ValueError("not the times of an engine")

    @property
    def answer_s(self) -> float:
        """Seconds of the prompt and the answer that engines are compared by."""
        return _PROMPT * self.read_s + _ANSWER * self.write_s

    def __str__(self) -> str:
        read, written = 1 / self.read_s, 1 / self.write_s
        return f"{written:.1f} tokens a second with drafts, prompts at {read:.0f}, loads in {self.load_s:.1f} s"


@dataclass(frozen=True)
class Comparison:
    """paces: by engine. Empty where OpenVINO is the only one that runs the model.
    noise: share by which the ratio of the engines differed between turns. others: cores that other programs used
        meanwhile.
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
        seconds = [pace.answer_s for pace in self.paces.values()]
        return not seconds or max(seconds) <= (1 + max(self.noise, _LEAST_NOISE)) * min(seconds)

    @property
    def faster(self) -> Backend:
        """Of a tie, the engine that loads faster."""
        if not self.paces:
            return "openvino"
        engines: tuple[Backend, ...] = get_args(Backend)
        paces, tie = self.paces, self.tie
        return min(engines, key=lambda name: paces[name].load_s if tie else paces[name].answer_s)

    @property
    def noisy(self) -> bool:
        return self.others > BUSY_CORES

    def __str__(self) -> str:
        if not self.paces:
            return "openvino runs this model, onnxruntime does not"
        paces = "; ".join(f"{name}: {pace}" for name, pace in sorted(self.paces.items()))
        seconds = " against ".join(f"{self.paces[name].answer_s:.1f} s" for name in sorted(self.paces))
        tie = "; a tie, so the one that loads faster" if self.tie else ""
        beside = f", beside other programs that took {self.others:.1f} cores" if self.noisy else ""
        noise = max(self.noise, _LEAST_NOISE)
        return f"{paces}; {_PROMPT} tokens read and {_ANSWER} written: {seconds}, noise {noise:.0%}{tie}{beside}"


def file_of(key: str) -> Path:
    """The file that stores a result. key: of weights, engines and numerics."""
    return measurement_store.file_of(f"engines-{cache.VERSIONS['engines']}", key)


def remembered(file: Path) -> Comparison | None:
    """The stored result, unless other programs disturbed it and are not running now."""
    found = measurement_store.read(file, Comparison)
    if found is None or not found.noisy or time() - file.stat().st_mtime < _AGAIN_S or busy(_LOOK_S):
        return found
    return None


def last(model: str, numerics: Numerics) -> Comparison | None:
    """The newest stored result for a model of this name, with any versions of the engines."""
    found: list[tuple[float, Comparison]] = []
    for file in file_of("*").parent.glob(file_of("*").name):
        record = measurement_store.read(file, Comparison)
        if record is not None and (record.model, record.numerics) == (model, numerics):
            found.append((file.stat().st_mtime, record))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def compare(model: str, numerics: Numerics, engines: Mapping[str, Engine]) -> Comparison:
    """Time each engine. All write what the first one wrote."""
    others = Others()
    text: list[int] = []
    turns: list[dict[str, float]] = []
    for _ in range(_TURNS):
        write_s = {}
        for name, engine in engines.items():
            written, write_s[name] = engine.write(text, len(text) or _WRITTEN, inf if text else _MOST_S)
            text = text or written
        turns.append(write_s)
    ratios = [turn["onnxruntime"] / turn["openvino"] for turn in turns]
    noise = max(abs(ratio / mean(ratios) - 1) for ratio in ratios)
    paces = {
        name: Pace(engine.read_s, min(turn[name] for turn in turns), engine.load_s) for name, engine in engines.items()
    }
    return Comparison(model, numerics, paces, noise, others.cores())
