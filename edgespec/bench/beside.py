"""What a target and a draft model take on this machine, alone and while the other one runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median
from time import perf_counter

from edgespec.protocols import Model, StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.simulate.forwards import Forward

_TURNS = 9
_STEPS, _MOST_STEPS = 4, 256
"""of a draft that is timed alone, and beside a forward"""
_LEAST_TIMES = 2
"""A forward that ends within a draft's first step says nothing."""
_EACH_GB_PER_S = 1.0
"""What either model asks of the bus. Only the bus over this says something: how much two of them slow each other."""


@dataclass(frozen=True)
class Paces:
    """forward_s: of the target by width, from 1 on. step_s: of the draft. Both alone. slowing: how many times as long
    they take while both run."""

    forward_s: tuple[float, ...]
    step_s: float
    slowing: float

    @property
    def bus(self) -> float:
        """GB a second that the two share."""
        return 2 * _EACH_GB_PER_S / self.slowing

    def target(self, width: int, context: int) -> Forward:
        return Forward(self.forward_s[width - 1], 0.0, _EACH_GB_PER_S)

    def draft(self, width: int, context: int) -> Forward:
        return Forward(self.step_s, 0.0, _EACH_GB_PER_S)


def measure(target: Model, drafter: StepwiseDrafter, text: Sequence[int], widest: int) -> Paces:
    """Behind a text, in turns."""
    held = len(text) - 1
    target.prefill(text[:held])
    alone: dict[int, list[float]] = defaultdict(list)
    together: dict[int, list[float]] = defaultdict(list)
    steps: list[float] = []
    steps_together: list[float] = []
    for _ in range(_TURNS):
        for width in range(1, 1 + widest):
            rows = [text[-1]] * width
            for _ in range(2):  # the second is not the first of its width
                began = perf_counter()
                target.forward(rows)
                alone_s = perf_counter() - began
                target.cache.crop(held)
            alone[width].append(alone_s)
            steps += _gaps(_steps(drafter, text, lambda drafted: drafted < _STEPS))
            target.start(rows)
            times = _steps(drafter, text, lambda _: not target.ready())
            target.wait()
            target.cache.crop(held)
            if len(times) > _LEAST_TIMES:  # the forward ended within the last step
                together[width].append(mean(times[-2:]) - times[0])
                steps_together += _gaps(times[:-1])
    slower = [median(together[width]) / median(alone[width]) for width in together]
    if steps_together:
        slower.append(median(steps_together) / median(steps))
    return Paces(tuple(median(alone[width]) for width in alone), median(steps), max(1.0, mean(slower or [1.0])))


def _steps(drafter: StepwiseDrafter, text: Sequence[int], go_on: Callable[[int], bool]) -> list[float]:
    """When a draft began, and when each of its steps ended. go_on gets the number of tokens."""
    drafter.begin(text, SamplingParams())
    times = [perf_counter()]

    def note(scores: Sequence[float]) -> bool:
        times.append(perf_counter())
        return go_on(len(scores))

    drafter.propose_while(text, _MOST_STEPS, note)
    return times


def _gaps(times: Sequence[float]) -> list[float]:
    """Between each time and the next."""
    return [after - before for before, after in pairwise(times)]
