"""Is the plan that was taken the fastest? Its share of the speed of the fastest, and how sure that is."""

from __future__ import annotations

from typing import Any

import pytest

from edgespec import planner
from edgespec.errors import BackendError
from edgespec.machine.plans import Plan
from edgespec.plan_race import MOST_TURNS
from edgespec.plan_rows import PlanTable
from edgespec.plan_trial import WHOLE
from edgespec.plan_verify import Verified, verify
from tests import scripted_plans
from tests.scripted_plans import LOOKUPS, ORT, OV, OVERLAPPED, Scripted, fake_pipeline, opened, quiet, row

scripted = scripted_plans.scripted


def verified(*plans: Plan, pipeline: Any = None) -> Verified:
    rows = tuple(row(plan, 1.0) for plan in plans)
    table = PlanTable("m", "speed", rows, text=(7,))
    return verify(table, lambda plan: pipeline or opened(plan), quiet, pairs=7)


def test_the_plans_that_were_not_tried_are_timed_too(scripted: type[Scripted]) -> None:
    """Each against the one taken, and not against the first of the table; with the text that chose it."""
    scripted.seconds[OVERLAPPED] = 0.9
    found = verified(OV, OVERLAPPED, LOOKUPS, ORT, pipeline=fake_pipeline(draft_s=0.05))
    assert (found.share, found.low, found.high, found.fastest) == (0.9, 0.9, 0.9, OVERLAPPED)
    assert all(text == [7] and length == WHOLE for _, text, length in scripted.made)
    turns = [scripted.turned.count(plan) for plan in (OVERLAPPED, LOOKUPS, ORT)]
    assert turns == [7, 5, 5] == [len(found.ratios[plan]) for plan in (OVERLAPPED, LOOKUPS, ORT)]
    best = verified(OVERLAPPED, OV, ORT)
    assert (best.share, best.low, best.high, best.fastest) == (1.0, 1.0, 1.0, OVERLAPPED)


def test_who_lost_each_of_five_pairs_is_not_the_fastest_and_leaves(scripted: type[Scripted]) -> None:
    scripted.seconds[LOOKUPS] = 1.01
    verified(OV, LOOKUPS)
    assert scripted.turned.count(LOOKUPS) == 5


def test_one_turn_that_was_disturbed_does_not_save_the_choice(scripted: type[Scripted]) -> None:
    scripted.seconds[LOOKUPS] = [9.0, *MOST_TURNS * [0.5]]
    found = verified(OV, LOOKUPS)
    assert (found.share, found.low, found.high, found.fastest) == (0.5, 0.5, 0.5, LOOKUPS)
    assert scripted.turned.count(LOOKUPS) == 8


def test_what_seven_pairs_do_not_tell_takes_more(scripted: type[Scripted]) -> None:
    """Whether the choice has 0.97 of the speed."""
    scripted.seconds[LOOKUPS] = [0.9, 1.0, 0.9, 1.0, 0.9, 1.0, 0.9, *MOST_TURNS * [1.0]]
    found = verified(OV, LOOKUPS)
    assert (found.share, found.low, found.high, found.fastest) == (1.0, 1.0, 1.0, OV)
    assert 7 < len(found.ratios[LOOKUPS]) < MOST_TURNS
    scripted.seconds[LOOKUPS] = MOST_TURNS * [0.9, 1.0]
    found = verified(OV, LOOKUPS)
    assert len(found.ratios[LOOKUPS]) == MOST_TURNS and (found.low, found.high) == (0.9, 1.0)
    assert (found.share, found.fastest) == (0.9, LOOKUPS)


def test_a_choice_that_does_not_run_now_is_not_judged(scripted: type[Scripted]) -> None:
    def open_plan(plan: Plan) -> Any:
        if plan == OV:
            raise BackendError("no such kernel")
        return fake_pipeline()

    with pytest.raises(BackendError, match="the plan that was taken does not run: no such kernel"):
        verify(PlanTable("m", "speed", (row(OV, 1.0), row(ORT, 1.0))), open_plan, quiet, pairs=7)


def test_nothing_is_said_of_the_choice_where_no_other_plan_was_timed(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_plan(plan: Plan) -> Any:
        if plan == ORT:
            raise BackendError("no such kernel")
        return fake_pipeline()

    table = PlanTable("m", "speed", (row(OV, 1.0), row(ORT, 1.0)))
    raised = verify(table, open_plan, quiet, pairs=7)
    assert (raised.share, raised.low, raised.high, raised.fastest, raised.ratios) == (None, None, None, None, {})
    assert raised.not_timed == {ORT: "does not run: no such kernel"}
    monkeypatch.setattr(planner, "no_room", lambda first: "2.0 GB of memory needed")
    assert verified(OV, LOOKUPS).not_timed == {LOOKUPS: "2.0 GB of memory needed"}
    assert verified(OV, LOOKUPS).share is None
