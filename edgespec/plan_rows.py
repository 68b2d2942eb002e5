"""The table of plans: what each took, which is taken, and why the others are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import cast

from edgespec.machine.engine_comparison import Pace
from edgespec.machine.plans import Plan
from edgespec.plan_trial import LEAST_GAIN
from edgespec.types import Prefer

SLOWEST_ON_BATTERY = 1.5
"""times as long as the fastest plan may take, to save energy"""


@dataclass(frozen=True)
class Row:
    """ratio: time of this plan's use over the first plan's. joules: of a token. why: it is not taken, or not tried."""

    plan: Plan
    pace: Pace | None = None
    ratio: float | None = None
    joules: float | None = None
    why: str = ""


@dataclass(frozen=True)
class PlanTable:
    """rows: the plan that is taken first, then the others. metered: joules were read from the CPU's counter, and are
    modelled otherwise. other_cores: what other programs used meanwhile. text: what all wrote."""

    model: str
    prefer: Prefer
    rows: tuple[Row, ...]
    metered: bool = False
    other_cores: float = 0.0
    text: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows or self.rows[0].pace is None or not 0 <= self.other_cores < inf:
            raise ValueError("no plan that runs")

    @property
    def taken(self) -> Plan:
        return self.rows[0].plan


def ranked(rows: Sequence[Row], prefer: Prefer) -> list[Row]:
    """The plan to take first; the others by their time, and last those that do not run. Each says why.

    A plan that is within noise of the first one does not take its place.
    """
    ran = [row for row in rows if row.ratio is not None]
    first = ran[0]
    best = min(ran, key=ratio_of)
    if ratio_of(best) > LEAST_GAIN:
        best = first
    reason = "the fastest" if best is not first else "no other is faster"
    if prefer == "battery" and all(row.joules is not None for row in ran):
        quick = [row for row in ran if ratio_of(row) <= SLOWEST_ON_BATTERY * ratio_of(best)]
        best, reason = min(quick, key=lambda row: cast("float", row.joules)), "takes least energy"
    others = sorted((row for row in ran if row is not best), key=ratio_of)
    told = [replace(row, why=_compared(row, best)) for row in others]
    return [replace(best, why=reason), *told, *(row for row in rows if row.ratio is None)]


def at_one_pace(rows: Sequence[Row]) -> list[Row]:
    """The rows with figures that agree with their ratios to the first one's. The machine changes its speed, so a turn
    of one plan and one of another, an hour later, cannot be compared."""
    first = rows[0]
    assert first.pace is not None
    unit_s = first.pace.use_s / ratio_of(first)
    return [
        row
        if row.pace is None or row.ratio is None
        else replace(row, pace=row.pace.times(row.ratio * unit_s / row.pace.use_s))
        for row in rows
    ]


def ratio_of(row: Row) -> float:
    assert row.ratio is not None
    return row.ratio


def _compared(row: Row, best: Row) -> str:
    gap = ratio_of(row) / ratio_of(best) - 1
    return f"{gap:.0%} slower" if gap >= 0.005 else f"{-gap:.0%} faster, but costs more" if gap < -0.02 else "as fast"
