"""How fast each engine answers with a model on this CPU: timed, and remembered.

Each runs a short answer in turns. Its best time counts: the others were disturbed. Other programs do not slow both
alike: what was measured beside them is measured again a day later, if the machine is idle then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import perf_counter, time
from typing import TYPE_CHECKING, get_args

from edgespec.machine import measurement_store
from edgespec.machine.other_programs import BUSY_CORES, Others, busy
from edgespec.types import Backend, Numerics

if TYPE_CHECKING:
    from edgespec.backends.engine_model import PaddedModel

_PROMPT, _ANSWER, _ACCEPTED = 128, 256, 0.45
"""tokens of the answer that engines are compared by, and the share of drafted tokens that it takes for accepted"""
_DRAFTED = 0.1
"""what a drafted token takes besides, in forwards of one row: a small draft model, or room for looking up"""
_SAMPLE, _TURNS = 64, 5
_CLEARLY = 1.05
"""times as fast: two measurements of one engine differ by less"""
ROWS_NEEDED = 2 * _SAMPLE
_LOOK_S, _AGAIN_S = 0.2, 24 * 3600
"""how long to look for them, and after how long to measure again what they disturbed"""


@dataclass(frozen=True)
class Comparison:
    """seconds: of the answer, by engine; 0 for OpenVINO alone, where nothing had to be compared. others: cores that
    other programs took meanwhile."""

    model: str
    numerics: Numerics
    seconds: dict[str, float]
    others: float = 0.0

    def __post_init__(self) -> None:
        positive = all(0 < seconds < inf for seconds in self.seconds.values()) or self.seconds == {"openvino": 0.0}
        if not (positive and "openvino" in self.seconds and set(self.seconds) <= set(get_args(Backend))):
            raise ValueError("not the times of engines")
        if not 0 <= self.others < inf:
            raise ValueError("not a number of cores")

    @property
    def faster(self) -> Backend:
        """OpenVINO unless the other one is so clearly: who measures again must not get another one."""
        openvino_s = self.seconds["openvino"]
        return "onnxruntime" if _CLEARLY * self.seconds.get("onnxruntime", openvino_s) < openvino_s else "openvino"

    @property
    def noisy(self) -> bool:
        return self.others > BUSY_CORES

    def __str__(self) -> str:
        times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sorted(self.seconds.items()))
        beside = f", beside other programs that took {self.others:.1f} cores" if self.noisy else ""
        return f"{times} expected for {_PROMPT} tokens of prompt and {_ANSWER} of answer{beside}"


def place(key: str) -> Path:
    """Where what was found is kept. key: of weights, engines and numerics."""
    return measurement_store.place("engines", key)


def remembered(file: Path) -> Comparison | None:
    """What was found earlier, unless other programs disturbed it and would not now."""
    found = measurement_store.read(file, Comparison)
    if found is None or not found.noisy or time() - file.stat().st_mtime < _AGAIN_S or busy(_LOOK_S):
        return found
    return None


def last(model: str, numerics: Numerics) -> Comparison | None:
    """What was found last for a model of this name, with any versions of the engines."""
    found: list[tuple[float, Comparison]] = []
    for file in place("*").parent.glob(place("*").name):
        record = measurement_store.read(file, Comparison)
        if record is not None and (record.model, record.numerics) == (model, numerics):
            found.append((file.stat().st_mtime, record))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def compare(model: str, numerics: Numerics, loaded: Mapping[str, PaddedModel]) -> Comparison:
    """loaded: the model on each engine, with room for the sample and a few tokens."""
    others = Others()
    found: dict[str, list[float]] = {name: [] for name in loaded}
    for _ in range(_TURNS):
        for name, one in loaded.items():
            found[name].append(answer_s(one))
    return Comparison(model, numerics, {name: min(tries) for name, tries in found.items()}, others.cores())


def answer_s(model: PaddedModel, clock: Callable[[], float] = perf_counter) -> float:
    """Seconds of a prompt and an answer whose rounds are as wide as it is best for this model."""
    model.cache.reset()
    began = clock()
    model.prefill([0] * _SAMPLE)
    prefill_s = (clock() - began) * _PROMPT / _SAMPLE
    token_s: list[float] = []
    forward_s: list[float] = []
    expected = 0.0
    for width in range(1, 5):
        expected += _ACCEPTED ** (width - 1)
        seconds = []
        for _ in range(4):
            model.cache.crop(_SAMPLE)
            began = clock()
            model.forward([0] * width)
            seconds.append(clock() - began)
        forward_s.append(min(seconds[1:]))  # the first one has changed the width
        token_s.append((forward_s[-1] + (width - 1) * _DRAFTED * forward_s[0]) / expected)
    return prefill_s + _ANSWER * min(token_s)
