"""At which width to run, on an engine that prepares every layer again for each new shape.

A switch of width is expensive there: half a forward of SmolLM2 on CPU (docs/log/adaptive.md). So a text has a *pinned
width*, and forwards of fewer tokens are padded to it. A forward of another width pays the switch there and back.
Each round says what it would be worth at each width (it *votes*). Another width is pinned when it would have earned
more in the last rounds than the switches cost.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from edgespec.adaptive.recent import KEPT, LATELY_ROUNDS

Seconds = Callable[[int], float]
"""What a forward of a width takes, behind one of the same."""


class PinnedWidth:
    """widths: measured ones, the only ones to pin. pinned: None until somebody has said what a text is like."""

    def __init__(self, widths: Sequence[int], pinned: int | None) -> None:
        self.widths = widths
        self.pinned = pinned
        self._last: int | None = None  # width of the last forward; None: another text's
        self._gain_s = dict.fromkeys(widths, 0.0)  # what a round of late would have earned more there

    def begin(self) -> None:
        """Another text: its first forward switches the width anyway, so the best one of late is pinned for nothing."""
        self._last = None
        if self.pinned is not None:
            self.pinned = max(self.widths, key=self._gain_s.__getitem__)

    def is_switch(self, width: int) -> bool:
        """Whether the last forward had another width."""
        return width != self._last

    def update(self, width: int) -> None:
        """A forward of this width ran."""
        self._last = width

    def choose(self, tokens: int, seconds: Seconds, switch_s: float) -> int:
        """The width to run a forward of so many tokens at."""
        return min(self._choices(tokens), key=lambda width: self._total_s(width, seconds, switch_s))

    def cost(self, tokens: int, seconds: Seconds, switch_s: float) -> float:
        """What that takes, with the switches it brings."""
        return min(self._total_s(width, seconds, switch_s) for width in self._choices(tokens))

    def width_of(self, tokens: int) -> int:
        """The narrowest measured width that holds so many; beyond them, their number."""
        return self.widths[bisect_left(self.widths, tokens)] if tokens <= self.widths[-1] else tokens

    def vote(self, worth_s: Callable[[int], float], switch_s: float) -> None:
        """worth_s: of the round to come, in seconds, if it ran at that width and switches were free."""
        worth = {width: worth_s(width) for width in self.widths}
        away = max(worth.values()) - 2 * switch_s  # the best width can be visited from any other
        at_pinned = max(worth[self.pinned or self.widths[0]], away)
        for width, so_far in self._gain_s.items():
            self._gain_s[width] = KEPT * so_far + (1 - KEPT) * (max(worth[width], away) - at_pinned)
        if self.pinned is None:
            self.pinned = max(self.widths, key=worth.__getitem__)
            return
        best = max(self.widths, key=self._gain_s.__getitem__)
        if (self._gain_s[best] - self._gain_s[self.pinned]) * LATELY_ROUNDS > 2 * switch_s:
            self.pinned = best

    def _choices(self, tokens: int) -> list[int]:
        """The nearest measured width, the pinned and the last one."""
        others = (
            width for width in (self._last, self.pinned) if width is not None and tokens < width <= self.widths[-1]
        )
        return [self.width_of(tokens), *others]

    def _total_s(self, width: int, seconds: Seconds, switch_s: float) -> float:
        """With the switch to this width, and the one back to the pinned width."""
        return seconds(width) + (self.is_switch(width) + (width != self.pinned)) * switch_s
