"""What a forward costs, and at which width to run it. No clock in here; times arrive with the rounds.

Begins from what was measured (``calibration``). While running, two corrections follow what is seen: one for all widths
(the machine is slower now), one for each. While only wide forwards are seen, or only narrow ones, nobody can tell which
correction is due. A narrow forward right behind a wide one, or the reverse, shows what plain decoding takes beside it.

An engine that prepares every layer again for each new shape makes a switch of width expensive: half a forward of
SmolLM2 on CPU (docs/log/adaptive.md). So a text has a *pinned width*, the one that pays best lately, and forwards of
fewer tokens are padded to it. A forward of another width pays more than the switch back. Another width is pinned when
it would have earned more in the last rounds than the switch costs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from edgespec.adaptive.calibration import ForwardTimes, line

_ALL, _EACH = 0.15, 0.02
"""how far the corrections move towards a new observation, in logarithms"""
_CONTRAST = 0.25
"""how far the narrowest width moves against all wider ones, when one follows the other"""
_AWAY = 3
"""switches charged for leaving the pinned width: one is the switch back. Two are a margin, since the offer
that asks for another width is the most hopeful of several estimates."""
_WINDOW, _AHEAD = 0.97, 30
"""rounds of late that say which width to pin, and rounds ahead in which a switch must pay"""
_ALIKE = 0.01
"""of a forward of the narrowest width: what a round at one width earns more than at another, and nobody can tell"""
_EXPENSIVE_SWITCH = 0.05
"""of a forward of the narrowest width: a switch that takes longer is worth avoiding"""
_OUTLIER = 1.5
"""a forward that took longer than this factor says so and no more: the machine was doing something else"""


class ForwardCost:
    """Seconds of a forward by width and context, and the width to run it at.

    pins_width: False where padding is not free of consequences; then every forward runs as wide as it is.

    >>> cost = ForwardCost(ForwardTimes((1, 5), 0, 100, (1.0, 2.0), (1.5, 3.0)))
    >>> cost(1, 0), cost(3, 0), cost(9, 0), cost(1, 200)
    (1.0, 1.5, 3.0, 2.0)

    Where an odd forward is padded to an even one, a third token is free behind two:

    >>> cost = ForwardCost(ForwardTimes((2, 4), 0, 100, (1.0, 2.0), (1.5, 3.0), width_step=2))
    >>> cost(1, 0), cost(2, 0), cost(3, 0), cost(4, 0)
    (1.0, 1.0, 2.0, 2.0)

    With a switch at 0.8 and width 5 pinned: a forward of 3 runs at 5; one of 9 is charged four switches, one there and
    three for leaving the pinned width.

    >>> cost = ForwardCost(ForwardTimes((1, 5, 9), 0, 100, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0), 0.8), pinned_width=5)
    >>> cost.update(3, 0, cost.width(3, 0), None)
    >>> cost.width(3, 0), cost(1, 0), round(cost(9, 0), 1)
    (5, 2.0, 6.2)
    """

    def __init__(self, times: ForwardTimes, *, pinned_width: int | None = None, pins_width: bool = True) -> None:
        self.times = times
        self.switch_is_expensive = times.width_switch_s > _EXPENSIVE_SWITCH * times.at_short_s[0]
        """and worth avoiding"""
        self.pins_width = pins_width and self.switch_is_expensive
        """whether there is a width worth staying at"""
        self._machine_factor = 1.0
        self._width_factors = [1.0] * len(times.widths)
        self._wider: bool | None = None  # the last one seen was wider than the narrowest
        self._known: list[tuple[float, float, int]] = []  # by width: at the short context, a row more, nearest width
        self.widths = times.widths
        self.pinned_width = pinned_width  # None: nobody has said yet what a text is like; see ``vote_width``
        self._last: int | None = None  # width of the last forward; None: another one's
        self._voted = False
        self._gain_s = dict.fromkeys(
            times.widths, 0.0
        )  # by width: a round of late would have earned so much more there

    def __call__(self, n: int, context: int) -> float:
        """To decide by: a forward of n tokens at the width it would run at, with the switches it brings."""
        if not self.pins_width:
            return self.seconds(n, context)
        return min(self._total(width, context) for width in self._choices(n))

    def seconds(self, width: int, context: int) -> float:
        """A forward of this width behind another of the same. Linear between the measured widths and contexts, and
        beyond them. Asked many times a round: kept quick."""
        while len(self._known) <= width:
            self._known.append(self._of_width(len(self._known)))
        at_short, a_row, nearest = self._known[width]
        behind = context - self.times.short
        at_context = at_short + a_row * behind if behind > 0 else at_short
        return at_context * self._machine_factor * self._width_factors[nearest]

    def fresh(self) -> ForwardCost:
        """What was measured, without what was learned since."""
        return ForwardCost(self.times, pins_width=self.pins_width)

    def begin(self) -> None:
        """Another text: there were forwards that this does not know of. Its first one switches the width anyway, so
        another one is pinned for nothing: the narrowest of the widths that have been about as good as the best."""
        self._last = self._wider = None
        if self.pinned_width is not None and self.pins_width:
            enough_s = max(self._gain_s.values()) - _ALIKE * self.seconds(self.widths[0], 0)
            self.pinned_width = next(width for width in self.widths if self._gain_s[width] >= enough_s)

    def width(self, tokens: int, context_length: int) -> int:
        """The width to run a forward of so many tokens at."""
        if not self.pins_width:
            return tokens
        return min(self._choices(tokens), key=lambda width: self._total(width, context_length))

    def vote_width(self, worth_s: Callable[[int], float]) -> None:
        """Pin another width if it has been better for long enough; at first, the best one.

        worth_s: of the round to come, in seconds, if it ran at that width (any measured one) and switches were free.
        """
        if not self.pins_width:
            return
        self._voted = True
        there_and_back_s = 2 * self._width_switch_s
        worth = {width: worth_s(width) for width in self.widths}
        away = max(worth.values()) - there_and_back_s  # the best width can be visited from any other
        at_pinned = max(worth[self.pinned_width or self.widths[0]], away)
        for width, so_far in self._gain_s.items():
            self._gain_s[width] = _WINDOW * so_far + (1 - _WINDOW) * (max(worth[width], away) - at_pinned)
        if self.pinned_width is None:
            self.pinned_width = max(self.widths, key=lambda width: worth[width])
            return
        best = max(self.widths, key=lambda width: self._gain_s[width])
        if (self._gain_s[best] - self._gain_s[self.pinned_width]) * _AHEAD > there_and_back_s:
            self.pinned_width = best

    def expected(self, width: int, context: int) -> float:
        """Seconds that a forward of this width is expected to take now, behind whatever ran last."""
        return self.seconds(width, context) + (self._width_switch_s if width != self._last else 0.0)

    def update(self, tokens: int, context_length: int, width: int, seconds: float | None) -> None:
        """A forward of so many tokens ran at ``width`` and took so long; None: it did other work too.

        Unless there was a vote since the last one, this votes for the width where so many tokens cost least.
        """
        expected = self.expected(width, context_length)
        self._last = width
        if not self._voted:
            away_s = self.seconds(self._nearest(tokens), context_length) + 2 * self._width_switch_s
            self.vote_width(lambda at: -(self.seconds(at, context_length) if tokens <= at else away_s))
        self._voted = False
        if seconds is None or expected <= 0.0 or seconds <= 0.0:
            return
        ratio = min(max(seconds / expected, 1 / _OUTLIER), _OUTLIER)
        nearest = self._known[width][2]
        self._machine_factor *= ratio**_ALL
        self._width_factors[nearest] *= ratio**_EACH
        wider = nearest > 0
        is_contrast = self._wider not in (None, wider)
        if is_contrast and not self.switch_is_expensive:  # an expensive switch is itself what they vary by
            contrast = ratio**_CONTRAST
            if not wider:  # what was seen of wider ones stands
                self._machine_factor *= contrast
                contrast = 1 / contrast
            self._width_factors[1:] = [own * contrast for own in self._width_factors[1:]]
        self._wider = wider

    def scale(self, ratio: float) -> None:
        """Some forwards took ``ratio`` times as long as expected."""
        self._machine_factor *= min(max(ratio, 1 / _OUTLIER), _OUTLIER) ** _ALL

    def read_s(self, n: int, context: int) -> float:
        """What n tokens more than one take, in forwards as wide as reading goes."""
        widest, one_s = self.widths[-1], self.seconds(1, context)
        if 1 + n <= widest:
            return max(0.0, self.seconds(1 + n, context) - one_s)
        if self.times.prefill_s_per_token:
            return n * self.times.prefill_s_per_token * self._machine_factor
        return max(0.0, n * (self.seconds(widest, context) - one_s) / max(1, widest - 1))

    @property
    def cache_refill_s(self) -> float:
        return self.times.cache_refill_s * self._machine_factor

    @property
    def _width_switch_s(self) -> float:
        return self.times.width_switch_s * self._machine_factor

    def _choices(self, n: int) -> list[int]:
        """Widths that a forward of n tokens may run at: the nearest measured one, the pinned and the last one."""
        most = self.widths[-1]
        others = (width for width in (self._last, self.pinned_width) if width is not None and n < width <= most)
        return [self._nearest(n), *others]

    def _nearest(self, n: int) -> int:
        return self.widths[bisect_left(self.widths, n)] if n <= self.widths[-1] else n

    def _total(self, width: int, context: int) -> float:
        """With the switch to this width, and what leaving the pinned width is charged."""
        changes = (width != self._last) + _AWAY * (width != self.pinned_width)
        return self.seconds(width, context) + changes * self._width_switch_s

    def _of_width(self, width: int) -> tuple[float, float, int]:
        times = self.times
        width = -(-max(width, times.widths[0]) // times.width_step) * times.width_step
        at_short = line(times.widths, times.at_short_s, width)
        rows = max(1, times.long - times.short)
        a_row = max(0.0, (line(times.widths, times.at_long_s, width) - at_short) / rows)
        nearest = min(range(len(times.widths)), key=lambda i: abs(times.widths[i] - width))
        return at_short, a_row, nearest
