"""What it costs to draft: a small model pays for every token, a head once for all tokens of a draft."""

from __future__ import annotations

from typing import Protocol

from edgespec.adaptive.forward_cost import NEW_SHARE, cut_outlier


class DraftCost(Protocol):
    """Seconds of a draft: ``start_s``, then ``seconds`` for each step. See ``ForwardCost``, which is one."""

    @property
    def start_s(self) -> float:
        """What a draft takes beyond its steps."""

    def seconds(self, width: int, context: int) -> float:
        """A step behind so many tokens; width: 1."""

    def read_s(self, n: int, context: int) -> float:
        """To read n tokens of the context before the first step, beyond the one that the step reads."""

    def scale(self, ratio: float) -> None:
        """A draft took ``ratio`` times as long as expected."""

    def begin(self) -> None:
        """Another text."""

    def fresh(self) -> DraftCost:
        """What was measured, without what was learned since."""


class CallCost:
    """Of a drafter that makes one call a draft: the call is all that it takes, however many tokens come of it.

    >>> cost = CallCost(0.02)
    >>> cost.start_s, cost.seconds(1, 100), cost.read_s(3, 100)
    (0.02, 0.0, 0.0)
    """

    def __init__(self, call_s: float) -> None:
        self._call_s = call_s
        self._machine_factor = 1.0

    @property
    def start_s(self) -> float:
        return self._call_s * self._machine_factor

    def seconds(self, width: int, context: int) -> float:
        return 0.0

    def read_s(self, n: int, context: int) -> float:
        return 0.0

    def scale(self, ratio: float) -> None:
        self._machine_factor *= cut_outlier(ratio, 1.0) ** NEW_SHARE

    def begin(self) -> None:
        return

    def fresh(self) -> CallCost:
        return CallCost(self._call_s)
