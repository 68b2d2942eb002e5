"""Which engine is faster on this CPU: measured once for a model, and remembered.

Each runs a short answer in turns, and its best time counts, since the others were disturbed. Other programs do not slow
both alike: what was measured beside them holds for this load only, and is measured again when the machine is idle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING

import msgspec

from edgespec import cache
from edgespec.types import Backend

if TYPE_CHECKING:
    from edgespec.backends.padded import PaddedModel

_PROMPT, _ANSWER, _ACCEPTED = 128, 256, 0.45
"""tokens of the answer that engines are compared by, and the share of drafted tokens that it takes for accepted"""
_DRAFTED = 0.1
"""what a drafted token takes besides, in forwards of one row: a small draft model, or room for looking up"""
_SAMPLE, _TURNS = 64, 5
ROWS_NEEDED = 2 * _SAMPLE
_BUSY = 0.15
"""of all cores, taken by other programs: more than this disturbs"""
_LOOK_S = 0.2


@dataclass(frozen=True)
class Comparison:
    """seconds: of the answer, by engine; none where a model runs on one only. others: share of all cores that other
    programs took meanwhile."""

    model: str
    seconds: dict[str, float]
    others: float = 0.0

    @property
    def faster(self) -> Backend:
        return "onnxruntime" if min(self.seconds, key=lambda name: self.seconds[name]) == "onnxruntime" else "openvino"

    @property
    def disturbed(self) -> bool:
        return self.others > _BUSY

    def __str__(self) -> str:
        times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sorted(self.seconds.items()))
        beside = f", beside other programs (they took {self.others:.0%} of the CPU)" if self.disturbed else ""
        return f"{times} for a short answer{beside}"


def place(key: str) -> Path:
    """Where what was found is kept. key: of weights, engines and numerics."""
    return cache.cache_dir() / "measured" / f"engines-{key}.json"


def remembered(key: str) -> Comparison | None:
    """What was found earlier, unless other programs disturbed it and would not now."""
    with suppress(OSError, msgspec.DecodeError):
        found = msgspec.json.decode(place(key).read_bytes(), type=Comparison)
        if not found.disturbed or busy(_LOOK_S):
            return found
    return None


def last(model: str) -> Comparison | None:
    """What was found last for a model of this name, on any versions."""
    found: list[tuple[float, Comparison]] = []
    for path in place("*").parent.glob(place("*").name):
        with suppress(OSError, msgspec.DecodeError):
            record = msgspec.json.decode(path.read_bytes(), type=Comparison)
            found.append((path.stat().st_mtime, record))
    named = [pair for pair in found if pair[1].model == model]
    return max(named, key=lambda pair: pair[0])[1] if named else None


def compare(model: str, loaded: Mapping[str, PaddedModel]) -> Comparison:
    """loaded: the model on each engine, with room for the sample and a few tokens."""
    others = Others()
    found: dict[str, list[float]] = {name: [] for name in loaded}
    for _ in range(_TURNS):
        for name, one in loaded.items():
            found[name].append(answer_s(one))
    return Comparison(model, {name: min(tries) for name, tries in found.items()}, others.share())


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


class Others:
    """The share of all cores that other programs take from now on."""

    def __init__(self) -> None:
        self._began = _cpu_s()

    def share(self) -> float:
        total_s, idle_s, own_s = (now - then for now, then in zip(_cpu_s(), self._began, strict=True))
        return max(0.0, (total_s - idle_s - own_s) / total_s) if total_s > 0 else 0.0


def busy(seconds: float) -> bool:
    """Whether other programs are at work now; looks for so long."""
    others = Others()
    sleep(seconds)
    return others.share() > _BUSY


def _cpu_s() -> tuple[float, float, float]:
    """Seconds of all cores since the system started, those spent idle, and those of this process."""
    import psutil

    times, own = psutil.cpu_times(), psutil.Process().cpu_times()
    counted = {name: value for name, value in times._asdict().items() if name not in ("guest", "guest_nice")}
    idle_s = counted["idle"] + counted.get("iowait", 0.0)
    return sum(counted.values()), idle_s, own.user + own.system
