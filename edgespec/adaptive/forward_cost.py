"""What a forward costs, and at which width to run it. No clock in here; times arrive with the rounds.

Begins from what was measured (``calibration``). While running, two corrections follow what is seen: one for all widths
(the machine is slower now), one for each. As long as all are wide, or all narrow, nobody can tell which of them it is:
what plain decoding takes beside wider forwards is known from one right behind the other.

An engine that prepares every layer anew for each new shape makes a forward of another width than the last one dear:
half a forward of SmolLM2 on CPU (docs/log/adaptive.md). So a text has a *home*, the width that pays best lately, and
forwards of fewer tokens are padded to it. Leaving home is charged with the way back; home moves when another width
would have earned more in the last rounds than it costs to move.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from edgespec.adaptive.calibration import ForwardTimes, line

_ALL, _EACH = 0.15, 0.02
"""how far the corrections move towards a new observation, in logarithms"""
_CONTRAST = 0.25
"""how far the narrowest width moves against all wider ones at one right behind the other"""
_AWAY = 3
"""changes of width that being away from home is charged: the way back, and caution, since of all offers it is the most
hopeful one that calls for it"""
_WINDOW, _AHEAD = 0.97, 30
"""rounds of late that say where home should be, and rounds ahead in which a move must pay"""
_ALIKE = 0.01
"""of a forward of the narrowest width: what a round at one width earns more than at another, and nobody can tell"""
_DEAR = 0.05
"""of a forward of the narrowest width: above this, a change of width is worth avoiding"""
_OUTLIER = 1.5
"""a forward that took longer than this factor says so and no more: the machine was doing something else"""


class ForwardCost:
    """Seconds of a forward by width and context, and the width to run it at.

    homes: False where padding is not free of consequences; then every forward runs as wide as it is.

    >>> cost = ForwardCost(ForwardTimes((1, 5), 0, 100, (1.0, 2.0), (1.5, 3.0)))
    >>> cost(1, 0), cost(3, 0), cost(9, 0), cost(1, 200)
    (1.0, 1.5, 3.0, 2.0)

    With changes of width at 0.8 and home at 5: a forward of 3 runs at 5; one of 9 goes there and back.

    >>> cost = ForwardCost(ForwardTimes((1, 5, 9), 0, 100, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0), 0.8), home=5)
    >>> cost.update(3, 0, cost.width(3, 0), None)
    >>> cost.width(3, 0), cost(1, 0), round(cost(9, 0), 1)
    (5, 2.0, 6.2)
    """

    def __init__(self, times: ForwardTimes, *, home: int | None = None, homes: bool = True) -> None:
        self._times = times
        self.dear = times.change_s > _DEAR * times.at_short_s[0]
        """whether a change of width is worth avoiding"""
        self.homes = homes and self.dear
        """whether there is a width worth staying at"""
        self._slowness = 1.0
        self._own = [1.0] * len(times.widths)
        self._wider: bool | None = None  # the last one seen was wider than the narrowest
        self._known: list[tuple[float, float, int]] = []  # by width: at the short context, a row more, nearest width
        self.widths = times.widths
        self.home = home  # None: nobody has said yet what a text is like; see ``prefer``
        self._last: int | None = None  # width of the last forward; None: another one's
        self._settled = False
        self._gain_s = dict.fromkeys(
            times.widths, 0.0
        )  # by width: a round of late would have earned so much more there

    def __call__(self, n: int, context: int) -> float:
        """To decide by: a forward of n tokens at the width it would run at, with the changes of width it brings."""
        if not self.homes:
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

    def fresh(self) -> ForwardCost:
        """What was measured, without what was learned since."""
        return ForwardCost(self._times, homes=self.homes)

    def begin(self) -> None:
        """Another text: there were forwards that this does not know of. Its first one changes the width anyway, so
        home moves for nothing: to the narrowest of the widths that have been about as good as the best."""
        self._last = self._wider = None
        if self.home is not None and self.homes:
            enough_s = max(self._gain_s.values()) - _ALIKE * self.steady(self.widths[0], 0)
            self.home = next(width for width in self.widths if self._gain_s[width] >= enough_s)

    def width(self, tokens: int, context_length: int) -> int:
        """The width to run a forward of so many tokens at."""
        if not self.homes:
            return tokens
        return min(self._choices(tokens), key=lambda width: self._total(width, context_length))

    def prefer(self, worth_s: Callable[[int], float]) -> None:
        """Move home if another width has been better for long enough; at first, to the best one.

        worth_s: of the round to come, in seconds, if it ran at that width (any measured one) and changes were free.
        """
        if not self.homes:
            return
        self._settled = True
        there_and_back_s = 2 * self._change_s
        worth = {width: worth_s(width) for width in self.widths}
        away = max(worth.values()) - there_and_back_s  # from any home the best width can be visited
        at_home = max(worth[self.home or self.widths[0]], away)
        for width, so_far in self._gain_s.items():
            self._gain_s[width] = _WINDOW * so_far + (1 - _WINDOW) * (max(worth[width], away) - at_home)
        if self.home is None:
            self.home = max(self.widths, key=lambda width: worth[width])
            return
        best = max(self.widths, key=lambda width: self._gain_s[width])
        if (self._gain_s[best] - self._gain_s[self.home]) * _AHEAD > there_and_back_s:
            self.home = best

    def expected(self, width: int, context: int) -> float:
        """Seconds that a forward of this width is expected to take now, behind whatever ran last."""
        return self.steady(width, context) + (self._change_s if width != self._last else 0.0)

    def update(self, tokens: int, context_length: int, width: int, seconds: float | None) -> None:
        """A forward of so many tokens ran at ``width`` and took so long; None: it did other work too. Unless somebody
        has said since the last one what to ``prefer``, home moves to where forwards of so many tokens cost least."""
        expected = self.expected(width, context_length)
        self._last = width
        if not self._settled:
            away_s = self.steady(self._nearest(tokens), context_length) + 2 * self._change_s
            self.prefer(lambda home: -(self.steady(home, context_length) if tokens <= home else away_s))
        self._settled = False
        if seconds is None or expected <= 0.0 or seconds <= 0.0:
            return
        ratio = min(max(seconds / expected, 1 / _OUTLIER), _OUTLIER)
        nearest = self._known[width][2]
        self._slowness *= ratio**_ALL
        self._own[nearest] *= ratio**_EACH
        wider = nearest > 0
        if self._wider not in (None, wider) and not self.dear:  # where changes are dear, it is what they vary by
            contrast = ratio**_CONTRAST
            if not wider:  # what was seen of wider ones stands
                self._slowness *= contrast
                contrast = 1 / contrast
            self._own[1:] = [own * contrast for own in self._own[1:]]
        self._wider = wider

    def scale(self, ratio: float) -> None:
        """Some forwards took ``ratio`` times as long as expected."""
        self._slowness *= min(max(ratio, 1 / _OUTLIER), _OUTLIER) ** _ALL

    def read_s(self, n: int, context: int) -> float:
        """What n tokens more than one take, in forwards as wide as reading goes."""
        widest, one_s = self.widths[-1], self.steady(1, context)
        if 1 + n <= widest:
            return max(0.0, self.steady(1 + n, context) - one_s)
        if self._times.row_s:
            return n * self._times.row_s * self._slowness
        return max(0.0, n * (self.steady(widest, context) - one_s) / max(1, widest - 1))

    @property
    def cold_s(self) -> float:
        return self._times.cold_s * self._slowness

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
        changes = (width != self._last) + _AWAY * (width != self.home)
        return self.steady(width, context) + changes * self._change_s

    def _of_width(self, width: int) -> tuple[float, float, int]:
        times = self._times
        width = max(width, times.widths[0])
        at_short = line(times.widths, times.at_short_s, width)
        rows = max(1, times.long - times.short)
        a_row = max(0.0, (line(times.widths, times.at_long_s, width) - at_short) / rows)
        nearest = min(range(len(times.widths)), key=lambda i: abs(times.widths[i] - width))
        return at_short, a_row, nearest
