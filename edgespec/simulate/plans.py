"""The plans of a pair on a chip: where target and draft run, by which schedule, and how far to draft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from edgespec.simulate.figures import Chip, Figures, Schedule
from edgespec.simulate.forwards import Engine, Measured, Roofline
from edgespec.simulate.schedules import Placed, Run, simulate

LONGEST = 8
"""tokens drafted ahead, at most"""
_TOKENS = 600
"""of a simulated text. Acceptance is chance: another seed differs by 1 to 2 %."""


@dataclass(frozen=True)
class Plan:
    """draft: device of the draft model; None: plain decoding. speed_up: over the fastest plain decoding of the chip."""

    target: str
    draft: str | None
    schedule: Schedule
    k: int
    tok_per_s: float
    block_efficiency: float
    joules: float
    speed_up: float = 1.0

    @property
    def place(self) -> tuple[str, str | None, Schedule]:
        return self.target, self.draft, self.schedule


@dataclass(frozen=True)
class Simulation:
    """A pair on a chip, behind so many rows of context."""

    figures: Figures
    chip_name: str
    pair_name: str
    acceptance: float
    context: int

    @property
    def chip(self) -> Chip:
        return self.figures.chip(self.chip_name)

    def plans(self, ks: Sequence[int] = range(1, LONGEST + 1)) -> list[Plan]:
        """All plans with each k, in no order."""
        found = [self._plan(*place, k) for place in self._places() for k in (ks if place[1] else (0,))]
        plain = max(plan.tok_per_s for plan in found if plan.draft is None)
        return [replace(plan, speed_up=plan.tok_per_s / plain) for plan in found]

    def run(self, plan: Plan, tokens: int = _TOKENS) -> Run:
        """Simulate a plan."""
        pair = self.figures.pair(self.pair_name)
        in_loop = plan.draft is not None and plan.draft != plan.target
        return simulate(
            plan.schedule,
            Placed(plan.target, engine(self.figures, self.chip_name, plan.target, pair.target, in_loop)),
            Placed(plan.draft, engine(self.figures, self.chip_name, plan.draft, pair.draft, in_loop))
            if plan.draft
            else None,
            k=plan.k,
            acceptance=self.acceptance,
            context=self.context,
            tokens=tokens,
            bus_gb_per_s=self.chip.shared_gb_per_s,
        )

    def _places(self) -> Iterator[tuple[str, str | None, Schedule]]:
        for target in self.chip.devices:
            yield target, None, "synchronous"
            for draft in self.chip.devices:
                yield target, draft, "synchronous"
                if draft != target and not self.chip.same_cores:
                    yield target, draft, "overlapped"

    def _plan(self, target: str, draft: str | None, schedule: Schedule, k: int) -> Plan:
        plan = Plan(target, draft, schedule, k, 0.0, 1.0, 0.0)
        run = self.run(plan)
        joules = sum(device.watts.value * run.timeline.busy_s(name) for name, device in self.chip.devices.items())
        return replace(
            plan, tok_per_s=run.tok_per_s, block_efficiency=run.tokens / run.forwards, joules=joules / run.tokens
        )


def engine(figures: Figures, chip: str, device: str, model: str, in_loop: bool) -> Engine:
    """A model on a device of a chip."""
    of_device, size = figures.chips[chip].devices[device], figures.models[model]
    for times in figures.forwards:
        if (times.chip, times.device, times.model) == (chip, device, model):
            return cache(Measured(times, of_device, size))
    return cache(Roofline(of_device, size, in_loop))


def best_of_each_place(plans: Sequence[Plan]) -> list[Plan]:
    """The best k of each placement and schedule, the fastest first."""
    best: dict[tuple[str, str | None, Schedule], Plan] = {}
    for plan in plans:
        if plan.place not in best or plan.tok_per_s > best[plan.place].tok_per_s:
            best[plan.place] = plan
    return sorted(best.values(), key=lambda plan: -plan.tok_per_s)


def least_energy(plans: Sequence[Plan]) -> Plan:
    """The plan that takes least energy a token, of those that are no slower than plain decoding on the same device.

    Energy: what each device takes while it computes, times how long it does. The rest of the laptop is left out, and a
    device that waits takes nothing.
    """
    plain = {plan.target: plan.tok_per_s for plan in plans if plan.draft is None}
    return min((plan for plan in plans if plan.tok_per_s >= plain[plan.target]), key=lambda plan: plan.joules)
