"""Calibration: what a forward of each width takes on this machine, what a change of width adds, measured once.

Everything is timed as a ratio to a forward run just before it: a machine that is busy or slow for a while is so for
both. Laptops and shared machines change their speed by a factor of two within seconds; ratios hold.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import inf
from statistics import median

from edgespec.protocols import Model

# Tokens of the forwards that are timed: all narrow ones, whose cost decides whether to draft at all, up to the longest
# draft and one more. Between them costs are near a line. With half of them 1 to 4 % are lost.
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 17)

# Behind so many tokens a forward's time hardly depends on them. With an empty cache another kernel may run.
_SHORT_TOKENS = 64

# Behind so many it does. Without it up to 8 % are lost behind 3,000 tokens. A longer context takes seconds to read.
_LONG_TOKENS = 512

# Each width is timed so often, at most. With 3 a width is twice as far off where other programs run, with 9 no nearer.
_TURNS = 5

# Where two ratios of a width differ by less than this share, the machine is quiet, and more of them say no more.
_AGREEING_SHARE = 0.03

# Tokens of the prompts by which reading is timed, and how often: 512 tokens take as long each.
_READ_TOKENS, _READ_TURNS = 128, 3

ROWS_NEEDED = _LONG_TOKENS + WIDTHS[-1]
"""of cache, to measure"""


@dataclass(frozen=True)
class ForwardTimes:
    """Seconds of a forward of each of ``widths`` tokens behind ``short`` and behind ``long`` rows of context, when the
    forward before was of the same width.

    width_step: forwards of other widths are padded to a multiple of it, and cost as much.
    width_switch_s: how much longer it takes when it was not. cache_refill_s: how much longer the first one takes after
    another model ran, whose weights have driven its own out of the CPU's caches. prefill_s_per_token: 0: not measured.
    """

    widths: tuple[int, ...]
    short: int
    long: int
    at_short_s: tuple[float, ...]
    at_long_s: tuple[float, ...]
    width_switch_s: float = 0.0
    cache_refill_s: float = 0.0
    prefill_s_per_token: float = 0.0
    width_step: int = 1

    def __post_init__(self) -> None:
        widths = (0, *self.widths)
        if len(widths) < 2 or any(after <= before for before, after in pairwise(widths)):
            raise ValueError("widths that do not rise from 1 on")
        if not len(self.widths) == len(self.at_short_s) == len(self.at_long_s) or not 0 <= self.short <= self.long:
            raise ValueError("not a time for each width behind each context")
        if not all(0 < seconds < inf for seconds in (*self.at_short_s, *self.at_long_s)):
            raise ValueError("a forward that takes no time, or for ever")
        if self.width_step < 1 or any(width % self.width_step for width in self.widths):
            raise ValueError("widths that are no multiples of their step")
        others = self.width_switch_s, self.cache_refill_s, self.prefill_s_per_token
        if not all(0 <= seconds < inf for seconds in others):
            raise ValueError("a time below nothing, or for ever")


@dataclass(frozen=True)
class Beside:
    """A forward of the model that takes turns with the one measured, and the seconds that it is known to take."""

    forward: Callable[[], object]
    seconds: float


class _Stopwatch:
    """Times forwards behind the same context."""

    def __init__(self, model: Model, clock: Callable[[], float]) -> None:
        self.model, self.clock = model, clock
        self.context = 0

    def __call__(self, width: int) -> float:
        self.model.cache.crop(self.context)
        began = self.clock()
        self.model.forward([0] * width)
        return self.clock() - began


def measure(
    model: Model,
    clock: Callable[[], float],
    *,
    least: int = 1,
    step: int = 1,
    beside: Beside | None = None,
    done: Callable[[float], None] = lambda share: None,
) -> ForwardTimes:
    """Time forwards of a model with room for ``ROWS_NEEDED``; its cache is empty afterwards.

    least: narrower forwards are padded to this anyway, and all to a multiple of ``step``. beside: puts the times of a
    draft on its target's scale. done: called with the share of the work that is done.
    """
    padded = {-(-max(width, least) // step) * step for width in WIDTHS}
    widths = sorted(width for width in padded if width <= model.capabilities.max_width)
    run = _Stopwatch(model, clock)
    model.prefill([0] * _SHORT_TOKENS)
    if not model.cache.repeat(_LONG_TOKENS):
        model.prefill([0] * _LONG_TOKENS)
    done(0.2)
    run.context = _LONG_TOKENS
    for width in widths:
        run(width)  # the first forward of a kind sets things up
    timed = widths[:: max(1, len(widths) // 3)]
    at_long, changes = _against_narrowest(run, timed)
    long_s = min(run(widths[0]) for _ in range(_TURNS))
    done(0.4)
    run.context = _SHORT_TOKENS
    short_s = min(run(widths[0]) for _ in range(_TURNS))
    at_short, more_changes = _against_narrowest(run, widths)
    done(0.8)
    farther = max(1.0, long_s / (short_s or 1.0))
    narrowest_s, cache_refill_s = _in_turns(run, widths[0], clock, beside, 2 * _TURNS) if beside else (short_s, 0.0)
    prefill_s_per_token = _reading(run, widths[0]) * narrowest_s if beside else 0.0
    model.cache.reset()
    short = [narrowest_s * ratio for ratio in _rising(widths, at_short, widths)]
    long = [narrowest_s * farther * ratio for ratio in _rising(timed, at_long, widths)]
    # Nor does a row of context ever cost more tokens less: far beyond what was timed, noise would turn the order round.
    behind = accumulate((after - before for before, after in zip(short, long, strict=True)), max)
    return ForwardTimes(
        tuple(widths),
        _SHORT_TOKENS,
        _LONG_TOKENS,
        tuple(short),
        tuple(before + more for before, more in zip(short, behind, strict=True)),
        max(0.0, narrowest_s * median(changes + more_changes)),
        cache_refill_s,
        prefill_s_per_token,
        step,
    )


_GLANCES = 3
"""Forwards of a width, of which the fastest counts: wider ones are never taken to cost less, so one that was disturbed
would make them all dearer."""


def glance(
    model: Model, clock: Callable[[], float], widths: Sequence[int], *, step: int = 1, read_s: float = 0.0
) -> ForwardTimes:
    """Of forwards behind the rows that the cache holds, in seconds instead of a minute: for a model that may not be
    chosen. read_s: a token of a prompt."""
    run = _Stopwatch(model, clock)
    run.context = model.cache.length
    firsts, seconds = [], []
    for width in widths:
        run(width)  # the first forward of a width sets things up
    for width in widths:
        firsts.append(run(width))
        seconds.append(min(run(width) for _ in range(_GLANCES)))
    model.cache.crop(run.context)
    switch_s = max(0.0, median(first - after for first, after in zip(firsts, seconds, strict=True)))
    rising = tuple(accumulate(seconds, max))
    return ForwardTimes(
        tuple(widths), run.context, run.context, rising, rising, switch_s, prefill_s_per_token=read_s, width_step=step
    )


def lengthened(times: ForwardTimes, beside_s: Sequence[float]) -> ForwardTimes:
    """A glance at a draft's forwards, lengthened by what its narrowest one takes more in turns with the target, whose
    weights drive the draft's out of the CPU's caches. beside_s: seconds of such forwards."""
    more_s = max(0.0, min(beside_s) - times.at_short_s[0])
    longer = tuple(seconds + more_s for seconds in times.at_short_s)
    return replace(times, at_short_s=longer, at_long_s=longer)


def measure_call(run: Callable[[], object], clock: Callable[[], float], beside: Beside) -> float:
    """Seconds of a call that takes turns with another model, whose weights drive its own out of the CPU's caches."""
    found = []
    for _ in range(2 * _TURNS):
        other_s = _seconds(beside.forward, clock) / beside.seconds
        found.append(_seconds(run, clock) / other_s)
    return median(found)


def _seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    run()
    return clock() - began


def _against_narrowest(run: _Stopwatch, widths: Sequence[int]) -> tuple[list[float], list[float]]:
    """Of each width its ratio to the narrowest one; and what changes of width took, in forwards of the narrowest.

    A ratio of two forwards may be a fifth off; the median of some is not.
    """
    ratios: dict[int, list[float]] = {width: [] for width in widths}
    changes: list[float] = []
    for _ in range(_TURNS):
        for width in (width for width in widths if not _is_settled(ratios[width])):
            back_s, narrowest_s = run(widths[0]), run(widths[0])
            if not narrowest_s or width == widths[0]:
                ratios[width].append(1.0)
                continue
            there_s, steady_s = run(width), run(width)
            changes += [(back_s - narrowest_s) / narrowest_s, (there_s - steady_s) / narrowest_s]
            ratios[width].append(steady_s / narrowest_s)
    return [median(ratios[width]) for width in widths], changes or [0.0]


def _is_settled(ratios: Sequence[float]) -> bool:
    """Whether two of some ratios are as good as equal.

    >>> _is_settled([1.5]), _is_settled([1.5, 1.52]), _is_settled([1.5, 1.7]), _is_settled([1.5, 1.7, 1.51])
    (False, True, False, True)
    """
    return any(after <= (1 + _AGREEING_SHARE) * before for before, after in pairwise(sorted(ratios)))


def _in_turns(
    run: _Stopwatch, width: int, clock: Callable[[], float], beside: Beside, turns: int
) -> tuple[float, float]:
    """(a forward behind another of its own, how much longer the one behind the other model's takes), in seconds."""
    warm, cold = [], []
    for _ in range(turns):
        other_s = _seconds(beside.forward, clock) / beside.seconds
        first_s, next_s = run(width), run(width)
        warm.append(next_s / other_s)
        cold.append((first_s - next_s) / other_s)
    return median(warm), max(0.0, median(cold))


def _reading(run: _Stopwatch, width: int) -> float:
    """A token of a prefill, in forwards of this width."""
    found = []
    run.context = _READ_TOKENS
    for _ in range(_READ_TURNS):
        run.model.cache.reset()
        began = run.clock()
        run.model.prefill([0] * _READ_TOKENS)
        read_s = run.clock() - began
        found.append(read_s / _READ_TOKENS / (run(width) or 1.0))
    return median(found)


def _rising(known: Sequence[int], ratios: Sequence[float], widths: Sequence[int]) -> list[float]:
    """Ratios of all ``widths`` from those of some. More rows never cost less: neighbours that say so share their mean
    (isotonic regression by pooling, Ayer et al. 1955).

    >>> _rising((1, 2, 3), (1.0, 1.5, 1.1), (1, 2, 3))
    [1.0, 1.3, 1.3]
    """
    pools: list[tuple[float, int]] = []  # sum and number of each run of neighbours
    for width in widths:
        total, count = line(known, ratios, width), 1
        while pools and pools[-1][0] * count > total * pools[-1][1]:
            total, count = total + pools[-1][0], count + pools[-1][1]
            pools.pop()
        pools.append((total, count))
    return [total / count for total, count in pools for _ in range(count)]


def line(xs: Sequence[int], ys: Sequence[float], x: int) -> float:
    """Linear between the points, and beyond them."""
    if len(xs) == 1:
        return ys[0]
    right = min(max(bisect_right(xs, x), 1), len(xs) - 1)
    left = right - 1
    return ys[left] + (ys[right] - ys[left]) * (x - xs[left]) / (xs[right] - xs[left])
