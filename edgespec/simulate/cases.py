"""The simulator against published cases: each is simulated from the figures, and its miss is printed."""

from __future__ import annotations

from dataclasses import dataclass

from edgespec.simulate.figures import Case, Figures
from edgespec.simulate.forwards import Constant
from edgespec.simulate.plans import engine
from edgespec.simulate.schedules import Placed, simulate

WITHIN = 0.15
"""of the published figure"""
_CONTEXT = 512
"""Rows of context: no source states them."""
_TOKENS = 2000


@dataclass(frozen=True)
class Checked:
    """what: of the figures that are compared, tok_per_s or speed_up."""

    case: Case
    what: str
    published: float
    simulated: float

    @property
    def off(self) -> float:
        """Share by which the simulation is too high, or too low if negative."""
        return self.simulated / self.published - 1

    @property
    def holds(self) -> bool:
        return abs(self.off) <= WITHIN


def check_cases(figures: Figures) -> list[Checked]:
    return [_check(figures, case) for case in figures.cases]


def chance_of(accepted: float, k: int) -> float:
    """The chance of each token, given that all before it are right, with which so large a share of k drafted tokens is
    accepted.

    >>> chance_of(0.6, 1), round(chance_of(0.4, 3), 3)
    (0.6, 0.607)
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        chance = (low + high) / 2
        if sum(chance**place for place in range(1, k + 1)) / k < accepted:
            low = chance
        else:
            high = chance
    return round((low + high) / 2, 12)


def _check(figures: Figures, case: Case) -> Checked:
    fast = _tok_per_s(figures, case, case.k)
    if case.speed_up is not None:
        return Checked(case, "speed_up", case.speed_up, fast / _tok_per_s(figures, case, 0))
    assert case.tok_per_s is not None, case.name
    return Checked(case, "tok_per_s", case.tok_per_s, fast)


def _tok_per_s(figures: Figures, case: Case, k: int) -> float:
    target, draft, bus = _models(figures, case)
    if case.acceptance is not None:
        acceptance = case.acceptance
    else:
        acceptance = chance_of(case.accepted, case.k) if case.accepted is not None else 0.0
    return simulate(
        case.schedule,
        target,
        draft if k else None,
        k=k,
        acceptance=acceptance,
        context=_CONTEXT,
        tokens=_TOKENS,
        bus_gb_per_s=bus,
        host_s=case.round_ms / 1e3 if k else 0.0,
        waits_for=case.waits_for,
    ).tok_per_s


def _models(figures: Figures, case: Case) -> tuple[Placed, Placed | None, float]:
    """Target, draft and GB a second of the bus: from a chip, or from published times."""
    if case.target_ms is not None:
        target, draft = Constant(case.target_ms / 1e3), case.draft_ms
        return Placed("target", target), Placed("draft", Constant(draft / 1e3)) if draft else None, 1.0
    assert case.chip and case.target and case.target_device, case.name
    apart = case.draft_device is not None and case.draft_device != case.target_device
    placed = Placed(case.target_device, engine(figures, case.chip, case.target_device, case.target, apart))
    bus = figures.chips[case.chip].shared_gb_per_s
    if case.draft is None or case.draft_device is None:
        return placed, None, bus
    return placed, Placed(case.draft_device, engine(figures, case.chip, case.draft_device, case.draft, apart)), bus
