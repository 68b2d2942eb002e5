"""How fast each engine answers with a model on this CPU: timed, and stored.

The engines run a short answer in turns. The best time of each counts, since its other times were disturbed. Other
programs slow the engines by different factors. So a result that they disturbed is measured again a day later, if the
machine is idle then.
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
"""tokens of the answer that engines are compared by, and the assumed share of drafted tokens that are accepted"""
_DRAFTED = 0.1
"""assumed cost of a drafted token, in forwards of one row: a small draft model, or some time for lookups"""
_SAMPLE, _TURNS = 64, 5
_CLEARLY = 1.05
"""times as fast. Two measurements of one engine differ by less."""
ROWS_NEEDED = 2 * _SAMPLE
_LOOK_S, _AGAIN_S = 0.2, 24 * 3600
"""how long to look for other programs, and when to measure again what they disturbed"""


@dataclass(frozen=True)
class Comparison:
    """seconds: time of the answer, by engine. It is 0 for OpenVINO alone, where nothing had to be compared.
    others: cores that other programs used meanwhile.
    """

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
        """OpenVINO, unless the other engine is clearly faster. Measuring again must not change the engine."""
        openvino_s = self.seconds["openvino"]
        return "onnxruntime" if _CLEARLY * self.seconds.get("onnxruntime", openvino_s) < openvino_s else "openvino"

    @property
    def noisy(self) -> bool:
        return self.others > BUSY_CORES

    def __str__(self) -> str:
        times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sorted(self.seconds.items()))
        beside = f", beside other programs that took {self.others:.1f} cores" if self.noisy else ""
        return f"{times} expected for {_PROMPT} tokens of prompt and {_ANSWER} of answer{beside}"


def file_of(key: str) -> Path:
    """The file that stores a result. key: of weights, engines and numerics."""
    return measurement_store.file_of("engines", key)


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


def compare(model: str, numerics: Numerics, loaded: Mapping[str, PaddedModel]) -> Comparison:
    """Time each engine. loaded: the model on each engine, with room for the sample and a few tokens."""
    others = Others()
    found: dict[str, list[float]] = {name: [] for name in loaded}
    for _ in range(_TURNS):
        for name, one in loaded.items():
            found[name].append(answer_s(one))
    return Comparison(model, numerics, {name: min(tries) for name, tries in found.items()}, others.cores())


def answer_s(model: PaddedModel, clock: Callable[[], float] = perf_counter) -> float:
    """Seconds of a prompt and an answer, if each round has the width that is best for this model."""
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
        forward_s.append(min(seconds[1:]))  # the first forward changed the width
        token_s.append((forward_s[-1] + (width - 1) * _DRAFTED * forward_s[0]) / expected)
    return prefill_s + _ANSWER * min(token_s)
