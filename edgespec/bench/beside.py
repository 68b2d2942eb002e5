"""What a target and a draft model take on this machine: alone, behind each other, and while the other one runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from time import perf_counter, sleep

from edgespec.adaptive.calibration import line
from edgespec.protocols import Model, StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.simulate.forwards import Forward
from edgespec.simulate.schedules import Placed

_TURNS = 7
_STEPS, _MOST_STEPS = 4, 256
"""of a draft that is timed alone, and beside a forward"""
_OVERLAP = 0.7
"""Of a forward, in which the draft goes on. The rest runs alone, so that its end is seen when it comes."""
_LOOK_S = 0.0005
"""between two looks at a forward that runs"""
_MOST_SLOWING = 2.0
"""Two that take turns slow each other by as much. A bus that is shared fairly has no more in it either."""


@dataclass(frozen=True)
class _Taking:
    """A model on a device: seconds of a forward by width, and what it asks of a bus. Narrower ones are padded."""

    seconds: Mapping[int, float]
    gb_per_s: float = 0.0

    def __call__(self, width: int, context: int) -> Forward:
        widths = tuple(self.seconds)
        return Forward(line(widths, tuple(self.seconds.values()), max(width, widths[0])), 0.0, self.gb_per_s)


@dataclass(frozen=True)
class Paces:
    """Seconds of a pair's models behind a text.

    forward_s: of the target by width, behind another of its own. switch_s: how much longer behind one of another width.
    refill_s: how much longer behind the draft, whose weights have driven its own out of the CPU's caches. host_s: of a
    forward, those in which the host sets it up or takes its outputs, so that no draft goes on.
    step_s: of the draft, behind another of its own. first_s: behind the target, if it reads one token, and if two.
    target_slowing, draft_slowing: how many times as long each takes while both run. None: no draft ended before a
    forward did, so that it is not known.
    """

    forward_s: dict[int, float]
    switch_s: float
    refill_s: float
    host_s: float
    step_s: float
    first_s: tuple[float, float]
    target_slowing: float | None = 1.0
    draft_slowing: float | None = 1.0

    @property
    def bus(self) -> float:
        """GB a second. While both run each gets half of them, and asks for as many as it is slowed by."""
        return 2.0

    @property
    def alone(self) -> Placed:
        """The target without a draft."""
        return Placed("target", _Taking(self.forward_s))

    @property
    def in_turns(self) -> tuple[Placed, Placed]:
        """Target and draft, of which one runs at a time."""
        one_s, two_s = self.first_s
        steps = {1: self.step_s, 2: self.step_s + max(0.0, two_s - one_s)}
        return (
            Placed("target", _Taking(self.forward_s), self.refill_s),
            Placed("draft", _Taking(steps), max(0.0, one_s - self.step_s)),
        )

    @property
    def at_once(self) -> tuple[Placed, Placed] | None:
        """Target and draft, which run beside each other, if it is known how they slow each other. ``host_s`` is left
        out."""
        if self.target_slowing is None or self.draft_slowing is None:
            return None
        forward_s = {width: seconds + self.refill_s - self.host_s for width, seconds in self.forward_s.items()}
        return (
            Placed("target", _Taking(forward_s, self.target_slowing)),
            Placed("draft", _Taking({1: self.step_s}, self.draft_slowing)),
        )


@dataclass
class _Times:
    """Seconds as they are seen; of the target by width. firsts: of a draft, by the tokens that it reads."""

    switched: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    own: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    behind: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    steps: list[float] = field(default_factory=list)
    firsts: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    both: list[tuple[int, float, float]] = field(default_factory=list)
    """width, seconds until the outputs are there, and those beside a draft"""
    steps_beside: list[float] = field(default_factory=list)

    def paces(self) -> Paces:
        switched, own, behind = (_medians(times) for times in (self.switched, self.own, self.behind))
        step_s, first_s = median(self.steps), _medians(self.firsts)
        start_s, end_s = median(self.starts or [0.0]), median(self.ends or [0.0])
        slowed = [
            slowing(behind[width] - start_s - end_s, took_s - end_s, beside_s) for width, took_s, beside_s in self.both
        ]
        beside = (_bounded(slowed), _bounded([seconds / step_s for seconds in self.steps_beside]))
        return Paces(
            own,
            max(0.0, median(switched[width] - behind[width] for width in own)),
            max(0.0, median(behind[width] - own[width] for width in own)),
            start_s + end_s,
            step_s,
            (first_s[1], first_s[2]),
            *(beside if self.starts else (1.0, 1.0)),
        )


def measure(
    target: Model, drafter: StepwiseDrafter, text: Sequence[int], widths: Sequence[int], *, at_once: bool
) -> Paces:
    """Behind a text, in turns. at_once: beside each other too."""
    times = _Times()
    target.prefill(text[:-1])
    for _ in range(_TURNS):
        for width in widths:
            _in_turns(times, target, drafter, text, width)
            if at_once:
                _at_once(times, target, drafter, text, width)
                _outputs(times, target, text, width)
    return times.paces()


def slowing(alone_s: float, took_s: float, beside_s: float) -> float:
    """How many times as long a forward took while a draft ran, which it did for a part of the time.

    alone_s: what it takes alone. beside_s: of the seconds it took, those in which the draft ran too.

    In two seconds beside a draft half a second is lost: what takes 1.5 took 2.

    >>> round(slowing(2.5, 3.0, 2.0), 3), slowing(3.0, 3.0, 2.0), slowing(1.0, 3.0, 2.0)
    (1.333, 1.0, 2.0)
    """
    done_s = beside_s - (took_s - alone_s)
    return min(beside_s / done_s, _MOST_SLOWING) if done_s > 0 else _MOST_SLOWING


def _in_turns(times: _Times, target: Model, drafter: StepwiseDrafter, text: Sequence[int], width: int) -> None:
    for unread in (1, 2):
        drafter.begin(text[: len(text) + 1 - unread], SamplingParams())
        drafter.begin(text, SamplingParams(), read=False)
        first, *others = _gaps(_steps(drafter, text, lambda drafted: drafted < _STEPS))
        times.firsts[unread].append(first)
        times.steps += others
        if unread == 1:
            times.switched[width].append(_forward_s(target, text, width))
            times.own[width].append(_forward_s(target, text, width))
        else:
            times.behind[width].append(_forward_s(target, text, width))


def _outputs(times: _Times, target: Model, text: Sequence[int], width: int) -> None:
    """What it takes to get the outputs of a forward that is done."""
    target.start([text[-1]] * width)
    while not target.ready():
        sleep(_LOOK_S)
    began = perf_counter()
    target.wait()
    times.ends.append(perf_counter() - began)
    target.cache.crop(len(text) - 1)


def _at_once(times: _Times, target: Model, drafter: StepwiseDrafter, text: Sequence[int], width: int) -> None:
    """A forward behind a draft, and a draft beside it that ends before it does."""
    share_s = _OVERLAP * times.behind[width][-1]
    drafter.begin(text, SamplingParams())
    _steps(drafter, text, lambda drafted: drafted < _STEPS)
    drafter.begin(text, SamplingParams())
    began = perf_counter()
    target.start([text[-1]] * width)
    started = perf_counter()
    steps = _steps(drafter, text, lambda _: perf_counter() - started < share_s and not target.ready())
    ends_later = not target.ready()
    target.wait()
    ended = perf_counter()
    target.cache.crop(len(text) - 1)
    times.starts.append(started - began)
    if ends_later:
        times.both.append((width, ended - started, steps[-1] - started))
        times.steps_beside += _gaps(steps)


def _forward_s(target: Model, text: Sequence[int], width: int) -> float:
    began = perf_counter()
    target.forward([text[-1]] * width)
    seconds = perf_counter() - began
    target.cache.crop(len(text) - 1)
    return seconds


def _steps(drafter: StepwiseDrafter, text: Sequence[int], go_on: Callable[[int], bool]) -> list[float]:
    """When a draft began, and when each of its steps ended. go_on gets the number of tokens."""
    times = [perf_counter()]

    def note(scores: Sequence[float]) -> bool:
        times.append(perf_counter())
        return go_on(len(scores))

    drafter.propose_while(text, _MOST_STEPS, note)
    return times


def _gaps(times: Sequence[float]) -> list[float]:
    """Between each time and the next."""
    return [after - before for before, after in pairwise(times)]


def _medians(times: Mapping[int, Sequence[float]]) -> dict[int, float]:
    return {key: median(seconds) for key, seconds in times.items()}


def _bounded(found: Sequence[float]) -> float | None:
    return min(max(1.0, median(found)), _MOST_SLOWING) if found else None
