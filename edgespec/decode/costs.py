"""What a forward costs, and at which width to run it. No clock in here; times arrive with the rounds.

A table is measured once for each model, device and machine (``measure``) and remembered by whoever loads models.
While running, two corrections follow what is seen: one for all widths (the machine is slower now), one for each.

An engine that prepares every layer anew for each new shape makes a forward of another width than the last one dear:
half a forward of SmolLM2 on CPU (docs/log.md). So a text has a *home*, the width that pays best lately, and forwards of
fewer tokens are padded to it. Leaving home is charged with the way back; home moves when another width would have
earned, round after round, more than the move costs (a cumulative sum test, Page 1954).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from edgespec.backends.base import Model

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 12, 17)
_SHORT, _LONG = 64, 512
ROWS_NEEDED = _LONG + WIDTHS[-1]
"""of cache, to measure"""
_ALL, _EACH = 0.15, 0.02
"""how far the corrections move towards a new observation, in logarithms"""
_OUTLIER = 1.5
"""a forward that took longer than this factor says so and no more: the machine was doing something else"""


@dataclass(frozen=True)
class ForwardTimes:
    """Seconds of a forward of each of ``widths`` tokens behind ``short`` and behind ``long`` rows of context, when the
    forward before was of the same width; and how much longer it takes when it was not."""

    widths: tuple[int, ...]
    short: int
    long: int
    at_short_s: tuple[float, ...]
    at_long_s: tuple[float, ...]
    change_s: float = 0.0


def measure(
    model: Model, clock: Callable[[], float], *, least: int = 1, turns: int = 2, repeats: int = 3
) -> ForwardTimes:
    """Time forwards of a model with room for ``ROWS_NEEDED``; its cache is empty afterwards.

    least: narrower forwards are padded to this anyway.
    """
    widths = sorted({max(width, least) for width in WIDTHS if width <= model.capabilities.max_width})
    times: dict[int, tuple[float, ...]] = {}
    changes: list[float] = []
    for context in (_SHORT, _LONG):
        changed: dict[int, list[float]] = {width: [] for width in widths}
        steady: dict[int, list[float]] = {width: [] for width in widths}
        model.prefill([0] * context)
        model.forward([0] * widths[-1])  # the first forward of a kind sets things up
        for _ in range(turns):  # in turns: the machine's mood is the same for all
            for width in widths:
                for repeat in range(1 + repeats):
                    model.cache.crop(context)
                    began = clock()
                    model.forward([0] * width)
                    (steady if repeat else changed)[width].append(clock() - began)
        # The least is what the forward costs, the rest is what else the machine did; and more rows never cost less.
        times[context] = tuple(accumulate((min(steady[width]) for width in widths), max))
        changes += [min(changed[width]) - min(steady[width]) for width in widths]
    model.cache.reset()
    return ForwardTimes(tuple(widths), _SHORT, _LONG, times[_SHORT], times[_LONG], max(0.0, median(changes)))


class ForwardCost:
    """Seconds of a forward by width and context, and the width to run it at.

    >>> cost = ForwardCost(ForwardTimes((1, 5), 0, 100, (1.0, 2.0), (1.5, 3.0)))
    >>> cost(1, 0), cost(3, 0), cost(9, 0), cost(1, 200)
    (1.0, 1.5, 3.0, 2.0)

    With changes of width at 0.8 and home at 5: a forward of 3 runs at 5; one of 9 goes there and back.

    >>> cost = ForwardCost(ForwardTimes((1, 5, 9), 0, 100, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0), 0.8), home=5)
    >>> cost.take(3), cost(1, 0), round(cost(9, 0), 1)
    (5, 2.0, 4.6)
    """

    def __init__(self, times: ForwardTimes, *, home: int | None = None) -> None:
        self._times = times
        self._slowness = 1.0
        self._own = [1.0] * len(times.widths)
        self._known: list[tuple[float, float, int]] = []  # by width: at the short context, a row more, nearest width
        self.widths = times.widths
        self.home = home or times.widths[0]
        self._last: int | None = None  # width of the last forward; None: another one's
        self._changed = False
        self._settled = False
        self._earned = dict.fromkeys(times.widths, 0.0)  # what a width would have earned more than home did, in seconds

    def __call__(self, n: int, context: int) -> float:
        """To decide by: a forward of n tokens at the width it would run at, with the changes of width it brings."""
        if not self._times.change_s:
            return self.steady(n, context)
        return min(self._total(width, context) for width in self._choices(n))

    def steady(self, width: int, context: int) -> float:
        """A forward of this width behind another of the same. Linear between the measured widths and contexts, and
        beyond them. Asked many times a round: kept quick."""
        while len(self._known) <= width:
            self._known.append(self._of_width(len(self._known)))
        at_short, a_row, nearest = self._known[width]
        behind = context - self._times.short
        return (at_short + a_row * behind if behind > 0 else at_short) * self._slowness * self._own[nearest]

    def begin(self) -> None:
        """Another text: there were forwards that this does not know of."""
        self._last = None

    def take(self, n: int, context: int = 0) -> int:
        """The width to run a forward of n tokens at; it is run now. Unless somebody has said since the last one what
        to ``prefer``, home moves to where forwards of what is asked for cost least."""
        width = n
        if self._times.change_s:
            if not self._settled:
                away_s = self.steady(self._nearest(n), context) + 2 * self._change_s
                self.prefer(lambda home: -(self.steady(home, context) if n <= home else away_s))
            self._settled = False
            width = min(self._choices(n), key=lambda width: self._total(width, context))
        self._changed = width != self._last
        self._last = width
        return width

    def prefer(self, worth_s: Callable[[int], float]) -> None:
        """Move home if another width has been better for long enough. worth_s: of the round to come, in seconds, if
        it ran at that width (any measured one) and no change cost anything."""
        if not self._times.change_s:
            return
        self._settled = True
        at_home = worth_s(self.home)
        for width in self.widths:
            self._earned[width] = max(0.0, self._earned[width] + worth_s(width) - at_home)
        best = max(self.widths, key=lambda width: self._earned[width])
        if self._earned[best] > 2 * self._change_s:  # there and back
            self.home = best
            self._earned = dict.fromkeys(self.widths, 0.0)

    def update(self, n: int, context: int, seconds: float) -> None:
        """The forward of n tokens that was run last took so long."""
        width = self._last or n
        expected = self.steady(width, context) + (self._change_s if self._changed else 0.0)
        if expected <= 0.0 or seconds <= 0.0:
            return
        ratio = min(max(seconds / expected, 1 / _OUTLIER), _OUTLIER)
        self._slowness *= ratio**_ALL
        self._own[self._known[width][2]] *= ratio**_EACH

    def scale(self, ratio: float) -> None:
        """Some forwards took ``ratio`` times as long as expected."""
        self._slowness *= min(max(ratio, 1 / _OUTLIER), _OUTLIER) ** _ALL

    @property
    def _change_s(self) -> float:
        return self._times.change_s * self._slowness

    def _choices(self, n: int) -> list[int]:
        """Widths that a forward of n tokens may run at: the nearest measured one, home, and where the last one ran."""
        most = self.widths[-1]
        others = (width for width in (self._last, self.home) if width is not None and n < width <= most)
        return [self._nearest(n), *others]

    def _nearest(self, n: int) -> int:
        return self.widths[bisect_left(self.widths, n)] if n <= self.widths[-1] else n

    def _total(self, width: int, context: int) -> float:
        """With the change to this width, and the one back home."""
        changes = (width != self._last) + (width != self.home)
        return self.steady(width, context) + changes * self._change_s

    def _of_width(self, width: int) -> tuple[float, float, int]:
        times = self._times
        width = max(width, times.widths[0])
        at_short = _line(times.widths, times.at_short_s, width)
        rows = max(1, times.long - times.short)
        a_row = max(0.0, (_line(times.widths, times.at_long_s, width) - at_short) / rows)
        nearest = min(range(len(times.widths)), key=lambda i: abs(times.widths[i] - width))
        return at_short, a_row, nearest


def _line(xs: Sequence[int], ys: Sequence[float], x: int) -> float:
    if len(xs) == 1:
        return ys[0]
    right = min(max(bisect_right(xs, x), 1), len(xs) - 1)
    left = right - 1
    return ys[left] + (ys[right] - ys[left]) * (x - xs[left]) / (xs[right] - xs[left])
