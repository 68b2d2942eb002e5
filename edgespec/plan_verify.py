"""Is the plan that was taken the fastest? All plans are timed again, each in turns with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from edgespec import planner
from edgespec.errors import BackendError, EdgespecError
from edgespec.machine.plans import Plan
from edgespec.plan_race import ENOUGH, MOST_TURNS, interval
from edgespec.plan_rows import PlanTable
from edgespec.plan_trial import Runner, ratio_in_turns


@dataclass(frozen=True)
class Verified:
    """ratios: of each plan's time to that of the one taken, turn by turn. not_timed: the other plans, and why.

    share: speed of the plan that was taken over that of the fastest, 1 if it is the fastest. low, high: the lowest ends
    of the plans' ranges (``plan_race.interval``) when their turns ended. All None if no other plan was timed.
    """

    share: float | None
    low: float | None
    high: float | None
    fastest: Plan | None
    ratios: dict[Plan, tuple[float, ...]]
    not_timed: dict[Plan, str] = field(default_factory=dict)


def verify(table: PlanTable, open_plan: planner.Open, say: planner.Say, pairs: int) -> Verified:
    """Time all plans of a table again, those not tried too, each in turns with the one that was taken. Raises
    BackendError if that does not run.

    pairs: of turns, at least, of a plan that may have been the better choice.
    """
    taken, *others = (row.plan for row in table.rows)
    try:
        say(f"timing {taken}")
        first = planner.in_long_turns(taken, open_plan, table.text)
    except EdgespecError as error:
        raise BackendError(f"the plan that was taken does not run: {error}", hint="measure again: --again") from error
    found: dict[Plan, tuple[float, ...]] = {}
    not_timed: dict[Plan, str] = {}
    for plan in others:
        say(f"timing {plan}")
        if why := planner.no_room(first):
            not_timed[plan] = why
            continue
        try:
            other = Runner(plan, open_plan(plan), table.text, first.length)
            found[plan] = _in_pairs(first, other, pairs)
            del other
        except EdgespecError as error:
            not_timed[plan] = f"does not run: {error}"
    return replace(judged(taken, found), not_timed=not_timed)


def judged(taken: Plan, ratios: dict[Plan, tuple[float, ...]]) -> Verified:
    """The lowest median is the share. It is low by luck, too, the more so the more plans there are: so is ``low``."""
    if not ratios:
        return Verified(None, None, None, None, ratios)
    times = {taken: 1.0} | {plan: median(each) for plan, each in ratios.items()}
    fastest = min(times, key=times.__getitem__)
    lows, highs = zip((1.0, 1.0), *(interval(each) for each in ratios.values()), strict=True)
    return Verified(times[fastest], min(lows), min(highs), fastest, ratios)


def _in_pairs(first: Runner, other: Runner, pairs: int) -> tuple[float, ...]:
    """Until it is known whether the first one has ``ENOUGH`` of the other one's speed."""
    ratios: list[float] = []
    while len(ratios) < MOST_TURNS and not _is_known(ratios, pairs):
        ratios.append(ratio_in_turns(first, other, len(ratios)))
    return tuple(ratios)


def _is_known(ratios: Sequence[float], pairs: int) -> bool:
    low, high = interval(ratios)
    return low >= 1.0 or (len(ratios) >= pairs and (low >= ENOUGH or high < ENOUGH))
