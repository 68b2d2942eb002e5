"""What a forward costs: a measured table, corrected while running. No clock in here; times arrive with the rounds.

A table is measured once for each model, device and machine (``measure``) and remembered by whoever loads models.
While running, two corrections follow what is seen: one for all widths (the machine is slower now), one for each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from edgespec.backends.base import Model

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 12, 17)
_SHORT, _LONG = 64, 512
ROWS_NEEDED = _LONG + WIDTHS[-1]
"""of cache, to measure"""
_ALL, _EACH = 0.08, 0.04
"""how far the corrections move towards a new observation, in logarithms"""
_OUTLIER = 1.5
"""a forward that took longer than this factor says so and no more: the machine was doing something else"""


@dataclass(frozen=True)
class ForwardTimes:
    """Seconds of a forward of each of ``widths`` tokens behind ``short`` and behind ``long`` rows of context."""

    widths: tuple[int, ...]
    short: int
    long: int
    at_short_s: tuple[float, ...]
    at_long_s: tuple[float, ...]


def measure(model: Model, clock: Callable[[], float], *, repeats: int = 3) -> ForwardTimes:
    """Time forwards of a model with room for ``ROWS_NEEDED``; its cache is empty afterwards."""
    widths = [width for width in WIDTHS if width <= model.capabilities.max_width]
    times: dict[int, tuple[float, ...]] = {}
    for context in (_SHORT, _LONG):
        found: dict[int, list[float]] = {width: [] for width in widths}
        model.prefill([0] * context)
        model.forward([0] * widths[-1])  # the first forward of a kind sets things up
        for _ in range(repeats):  # in turns: the machine's mood is the same for all
            for width in widths:
                model.cache.crop(context)
                began = clock()
                model.forward([0] * width)
                found[width].append(clock() - began)
        times[context] = tuple(median(found[width]) for width in widths)
    model.cache.reset()
    return ForwardTimes(tuple(widths), _SHORT, _LONG, times[_SHORT], times[_LONG])


class ForwardCost:
    """Seconds of a forward by width and context.

    >>> cost = ForwardCost(ForwardTimes((1, 5), 0, 100, (1.0, 2.0), (1.5, 3.0)))
    >>> cost(1, 0), cost(3, 0), cost(9, 0), cost(1, 200)
    (1.0, 1.5, 3.0, 2.0)
    """

    def __init__(self, times: ForwardTimes) -> None:
        self._times = times
        self._slowness = 1.0
        self._own = [1.0] * len(times.widths)

    def __call__(self, width: int, context: int) -> float:
        return self._table(width, context) * self._slowness * self._own[self._nearest(width)]

    def update(self, width: int, context: int, seconds: float) -> None:
        """A forward of this width took so long."""
        expected = self(width, context)
        if expected <= 0.0 or seconds <= 0.0:
            return
        ratio = min(max(seconds / expected, 1 / _OUTLIER), _OUTLIER)
        self._slowness *= ratio**_ALL
        self._own[self._nearest(width)] *= ratio**_EACH

    def scale(self, ratio: float) -> None:
        """Some forwards took ``ratio`` times as long as expected."""
        self._slowness *= min(max(ratio, 1 / _OUTLIER), _OUTLIER) ** _ALL

    def _table(self, width: int, context: int) -> float:
        """Linear between the measured widths and contexts, and beyond them."""
        times = self._times
        at_short = _line(times.widths, times.at_short_s, width)
        if times.long == times.short:
            return at_short
        a_row = (_line(times.widths, times.at_long_s, width) - at_short) / (times.long - times.short)
        return at_short + max(0.0, a_row) * (context - times.short if context > times.short else 0)

    def _nearest(self, width: int) -> int:
        widths = self._times.widths
        return min(range(len(widths)), key=lambda i: abs(widths[i] - width)) if width < widths[-1] else len(widths) - 1


def _line(xs: Sequence[int], ys: Sequence[float], x: int) -> float:
    if len(xs) == 1:
        return ys[0]
    right = min(max(bisect_right(xs, x), 1), len(xs) - 1)
    left = right - 1
    return ys[left] + (ys[right] - ys[left]) * (x - xs[left]) / (xs[right] - xs[left])
