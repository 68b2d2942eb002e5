"""Plans that are near one another take turns until it is known which is the fastest, or that it hardly matters.

A turn of a plan differs by some hundredths from its next one. So a fixed number of turns is too few for plans that are
near, and more than needed for others (docs/log/devices.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, inf
from statistics import median

from edgespec.plan_trial import Runner, is_behind

MOST_TURNS = 21
"""of a plan: then those that are left are as good as equal"""
ENOUGH = 0.97
"""Of the fastest plan's speed: a plan that has it by ``interval`` is taken, and no more turns are spent."""
_CERTAINTY = 0.9
"""of the sign test, for a number of turns that is fixed before"""


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """The range of the sign test: between which of the ratios the median of many more lies, whatever their
    distribution, by how many lie on either side.

    It promises no share of cases. For a fixed number of ratios the range holds the median in nine of ten. Turns end
    when it tells, and several plans are looked at, so it is wrong more often.

    >>> interval([1.3, 1.0, 1.2, 1.1]), interval([1.3, 1.0, 1.2, 9.0, 1.1])
    ((0.0, inf), (1.0, 9.0))
    >>> interval([1.3, 1.0, 1.2, 9.0, 1.1, 0.1, 1.2, 1.2])
    (1.0, 1.3)
    """
    count, outside, left = len(ratios), 0.0, 0
    while left < count and (outside := outside + 2 * comb(count, left) / 2**count) <= 1 - _CERTAINTY:
        left += 1
    if not left:
        return 0.0, inf
    found = sorted(ratios)
    return found[left - 1], found[-left]


def in_rounds(first: Runner, rivals: Sequence[Runner], most: int = MOST_TURNS) -> dict[Runner, float]:
    """Of each rival its time over the first one's, in rounds of a turn each: by medians of ratios to the fastest.

    Who is slower than another one by ``is_behind`` or by ``interval`` leaves. It ends when whoever seems the fastest
    has ``ENOUGH`` of the speed of each that is left, by ``interval`` too, or after so many rounds.
    """
    seconds: dict[Runner, list[float]] = {runner: [] for runner in (first, *rivals)}
    at_work = list(seconds)

    def over(runner: Runner, other: Runner) -> list[float]:
        """In the rounds that both took part in."""
        return [mine / its for mine, its in zip(seconds[runner], seconds[other], strict=False)]

    for number in range(most):
        for runner in at_work if number % 2 == 0 else at_work[::-1]:
            seconds[runner].append(runner.turn().use_s)
        for runner in list(at_work):
            if any(_is_slower(over(runner, other)) for other in at_work if other is not runner):
                at_work.remove(runner)
        fastest = min(at_work, key=lambda runner: max(median(over(runner, other)) for other in at_work))
        if all(interval(over(other, fastest))[0] >= ENOUGH for other in at_work if other is not fastest):
            break
    times = {runner: median(over(runner, fastest)) for runner in seconds}
    return {runner: times[runner] / times[first] for runner in rivals}


def _is_slower(ratios: Sequence[float]) -> bool:
    return is_behind(ratios) or interval(ratios)[0] > 1.0
