"""What a forward costs. No clock in here; times arrive with the rounds.

Begins from what was measured (``calibration``). While running, two corrections follow what is seen: one for all widths
(the machine is slower now), and one for each (the calibration was wrong about it).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import median

from edgespec.adaptive.calibration import ForwardTimes, line
from edgespec.adaptive.recent import LATELY_ROUNDS
from edgespec.adaptive.width_policy import PinnedWidth
from edgespec.stats import Stats

# How far a new observation moves both corrections, in logarithms. As far for a width as for the machine: then rounds of
# one width only do not hide that it alone is slow, and a narrow forward behind wide ones tells.
NEW_SHARE = 0.1

# A forward that took longer than this factor of what was expected says so and no more: a first one sets things up.
_OUTLIER_FACTOR = 1.5

# Of a forward of the narrowest width: a switch that takes longer is worth avoiding; by none being so 1 to 4 % are lost.
# Where switches are free a calibration says up to 0.01. 0.02 and 0.1 part the engines as well.
_EXPENSIVE_SWITCH_SHARE = 0.05


class ForwardCost:
    """Seconds of a forward by width and context, and the width to run it at (a ``WidthPolicy``).

    pins_width: False where padding is not free of consequences; then every forward runs as wide as it is.

    >>> cost = ForwardCost(ForwardTimes((1, 5), 0, 100, (1.0, 2.0), (1.5, 3.0)))
    >>> cost(1, 0), cost(3, 0), cost(9, 0), cost(1, 200)
    (1.0, 1.5, 3.0, 2.0)

    Where an odd forward is padded to an even one, a third token is free behind two:

    >>> cost = ForwardCost(ForwardTimes((2, 4), 0, 100, (1.0, 2.0), (1.5, 3.0), width_step=2))
    >>> cost(1, 0), cost(2, 0), cost(3, 0), cost(4, 0)
    (1.0, 1.0, 2.0, 2.0)

    With a switch at 0.8 and width 5 pinned: a forward of 3 runs at 5; one of 9 is charged a switch there and one back.

    >>> cost = ForwardCost(ForwardTimes((1, 5, 9), 0, 100, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0), 0.8), pinned_width=5)
    >>> cost.update(3, 0, cost.width(3, 0), None)
    >>> cost.width(3, 0), cost(1, 0), round(cost(9, 0), 1)
    (5, 2.0, 4.6)
    """

    def __init__(self, times: ForwardTimes, *, pinned_width: int | None = None, pins_width: bool = True) -> None:
        self.times = times
        self.widths = times.widths
        self.switch_is_expensive = times.width_switch_s > _EXPENSIVE_SWITCH_SHARE * times.at_short_s[0]
        """and worth avoiding"""
        self.pins_width = pins_width and self.switch_is_expensive
        """whether there is a width worth staying at"""
        self._pinned = PinnedWidth(times.widths, pinned_width)
        self._voted = False
        self._machine_factor = 1.0
        self._width_factors = [1.0] * len(times.widths)
        self._known: dict[int, tuple[float, float, int]] = {}  # by width: at the short context, a row more, nearest

    def __call__(self, n: int, context: int) -> float:
        """To decide by: a forward of n tokens at the width it would run at, with the switches it brings."""
        if not self.pins_width:
            return self.seconds(n, context)
        return self._pinned.cost(n, lambda width: self.seconds(width, context), self._width_switch_s)

    def seconds(self, width: int, context: int) -> float:
        """A forward of this width behind another of the same. Linear between the measured widths and contexts, and
        beyond them. Asked many times a round: kept quick. Any thread may ask."""
        known = self._known.get(width)
        if known is None:
            known = self._known[width] = self._of_width(width)
        at_short, a_row, nearest = known
        behind = context - self.times.short
        at_context = at_short + a_row * behind if behind > 0 else at_short
        return at_context * self._machine_factor * self._width_factors[nearest]

    def fresh(self) -> ForwardCost:
        """What was measured, without what was learned since."""
        return ForwardCost(self.times, pins_width=self.pins_width)

    @property
    def pinned_width(self) -> int | None:
        """The width that forwards of fewer tokens are padded to; None: nobody has said yet what a text is like."""
        return self._pinned.pinned

    def begin(self) -> None:
        """Another text: there were forwards that this does not know of."""
        self._pinned.begin()

    def width(self, tokens: int, context_length: int) -> int:
        """The width to run a forward of so many tokens at."""
        if not self.pins_width:
            return tokens
        return self._pinned.choose(tokens, lambda width: self.seconds(width, context_length), self._width_switch_s)

    def vote_width(self, worth_s: Callable[[int], float]) -> None:
        """What the round to come is worth at each measured width (see ``PinnedWidth.vote``)."""
        if self.pins_width:
            self._voted = True
            self._pinned.vote(worth_s, self._width_switch_s)

    def expected(self, width: int, context: int) -> float:
        """Seconds that a forward of this width is expected to take now, behind whatever ran last."""
        return self.seconds(width, context) + (self._width_switch_s if self._pinned.is_switch(width) else 0.0)

    def update(self, tokens: int, context_length: int, width: int, seconds: float | None) -> None:
        """A forward of so many tokens ran at ``width`` and took so long; None: it did other work too.

        Unless there was a vote since the last one, this votes for the width where so many tokens cost least.
        """
        expected_s = self.expected(width, context_length)
        contrast = self._pinned.is_switch(width) and not self.switch_is_expensive  # which itself varies
        self._pinned.update(width)
        if not self._voted:
            away_s = self.seconds(self._pinned.width_of(tokens), context_length) + 2 * self._width_switch_s
            self.vote_width(lambda at: -(self.seconds(at, context_length) if tokens <= at else away_s))
        self._voted = False
        if seconds is None:
            return
        ratio = cut_outlier(seconds, expected_s) / expected_s
        self._machine_factor *= ratio**NEW_SHARE
        self._width_factors[self._known[width][2]] *= ratio ** (NEW_SHARE if contrast else 1 / LATELY_ROUNDS)

    def slower(self, stats: Stats) -> float:
        """How many times as long as expected the forwards of a generation took.

        Of forwards behind another of their width, since a change of width is no slower machine; 1.0 if there are none.
        What a model's draft drove out of the CPU's caches is not told apart from that.
        """
        length, ratios = stats.prompt_tokens, []
        for before, round_ in pairwise(stats.rounds):
            length += before.committed
            if not round_.read and round_.width == before.width:
                ratios.append(round_.target_s / self.seconds(round_.width, length))
        return median(ratios) if ratios else 1.0

    def scale(self, ratio: float) -> None:
        """Some forwards took ``ratio`` times as long as expected."""
        self._machine_factor *= cut_outlier(ratio, 1.0) ** NEW_SHARE

    def read_s(self, n: int, context: int) -> float:
        """What n tokens more than one take, in forwards as wide as reading goes."""
        widest, one_s = self.widths[-1], self.seconds(1, context)
        if 1 + n <= widest:
            return max(0.0, self.seconds(1 + n, context) - one_s)
        if self.times.prefill_s_per_token:
            return n * self.times.prefill_s_per_token * self._machine_factor
        return max(0.0, n * (self.seconds(widest, context) - one_s) / max(1, widest - 1))

    @property
    def start_s(self) -> float:
        """What a draft takes beyond its steps: its first one runs behind another model."""
        return self.times.cache_refill_s * self._machine_factor

    @property
    def _width_switch_s(self) -> float:
        return self.times.width_switch_s * self._machine_factor

    def _of_width(self, width: int) -> tuple[float, float, int]:
        times = self.times
        width = -(-max(width, times.widths[0]) // times.width_step) * times.width_step
        at_short = line(times.widths, times.at_short_s, width)
        rows = max(1, times.long - times.short)
        a_row = max(0.0, (line(times.widths, times.at_long_s, width) - at_short) / rows)
        nearest = min(range(len(times.widths)), key=lambda i: abs(times.widths[i] - width))
        return at_short, a_row, nearest


def cut_outlier(seconds: float, expected_s: float) -> float:
    """What was seen, cut where it is so far off that the machine was doing something else."""
    return min(max(seconds, expected_s / _OUTLIER_FACTOR), expected_s * _OUTLIER_FACTOR)
