"""The planner: plans are timed beside each other, and what is not tried says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from edgespec import planner
from edgespec.errors import BackendError, SettingError
from edgespec.machine import schedule_choice
from edgespec.machine.plans import Plan
from edgespec.plan_rows import PlanTable, Row
from edgespec.plan_trial import WHOLE, Length
from tests import scripted_plans
from tests.scripted_plans import (
    CPU,
    CPU_ORT,
    GPU,
    LOOKUPS,
    ORT,
    OV,
    OVERLAPPED,
    Scripted,
    fake_pipeline,
    made,
    opened,
    quiet,
    row,
)  # fmt: skip

scripted = scripted_plans.scripted


def measure(pipeline: Any, broken: tuple[Plan, ...] = ()) -> list[Row]:
    def open_plan(plan: Plan) -> Any:
        if plan in broken:
            raise BackendError("no such kernel")
        return pipeline

    return planner.measure([OV, OVERLAPPED, LOOKUPS, ORT], open_plan, quiet)[0]


def test_every_plan_is_timed_beside_the_first(scripted: type[Scripted]) -> None:
    assert [each.ratio for each in measure(fake_pipeline())] == [1.0, 0.5, 2.0, 3.0]


def test_a_plan_that_does_not_run_stays_in_the_table(scripted: type[Scripted]) -> None:
    found = measure(fake_pipeline(), broken=(OV, LOOKUPS))
    assert [each.ratio for each in found] == [None, 1.0, None, 6.0]
    assert found[0].why == found[2].why == "does not run: no such kernel"
    with pytest.raises(BackendError, match="no such kernel"):
        measure(fake_pipeline(), broken=(OV, OVERLAPPED, LOOKUPS, ORT))
    with pytest.raises(SettingError, match="leave no plan"):
        planner.measure([], opened, quiet)


def test_all_plans_write_the_text_of_the_first_one_for_about_as_long(scripted: type[Scripted]) -> None:
    """A turn of the first one takes a second: half of the answers if it is slow, else some of them."""
    measure(fake_pipeline())
    (_, _, whole), *others = scripted.made
    assert whole == WHOLE and {tuple(text) for _, text, _ in others} == {(1,) * 32}
    assert {length for _, _, length in others} == {Length(share=0.5)}
    scripted.made.clear()
    scripted.seconds = dict.fromkeys(scripted.seconds, 0.005)
    measure(fake_pipeline())
    assert {length for _, _, length in scripted.made[1:]} == {Length(repeats=3)}


def test_who_is_clearly_slower_is_left_before_its_last_turn(scripted: type[Scripted]) -> None:
    """By one turn only if it took three times as long, since one may be disturbed."""
    scripted.seconds = {OV: 1.0, OVERLAPPED: 3.1, LOOKUPS: [1.5, 1.4, 1.0], ORT: [2.9, 1.0, 1.0]}
    measure(fake_pipeline())
    assert [scripted.turned.count(plan) for plan in (OVERLAPPED, LOOKUPS, ORT)] == [1, 2, 3]
    scripted.turned.clear()
    scripted.seconds[OVERLAPPED] = 1.7
    planner.measure([OV, OVERLAPPED], opened, quiet, "battery")
    assert scripted.turned.count(OVERLAPPED) == 3, "it may take less energy"
    scripted.turned.clear()
    scripted.seconds |= {OVERLAPPED: [1.7, 1.0, 1.0], LOOKUPS: [1.5, 1.2, 1.0]}
    planner.measure([OV, LOOKUPS], opened, quiet)
    assert scripted.turned == [OV, LOOKUPS, LOOKUPS, OV, OV, LOOKUPS], "who begins changes"


def test_one_slow_turn_of_the_first_plan_decides_nothing(scripted: type[Scripted]) -> None:
    """It would make another one the base, and scale what comes after."""
    scripted.seconds = {OV: [1.7, *15 * [1.0]], OVERLAPPED: 0.9, LOOKUPS: 1.1, ORT: 1.0}
    assert [each.ratio for each in measure(fake_pipeline())] == [1.0, 0.9, 1.1, 1.0]


def test_plans_are_timed_beside_one_that_is_faster_for_sure(scripted: type[Scripted]) -> None:
    """A slow first plan would take most of the time."""
    scripted.seconds = {OV: 2.0, ORT: 1.0, OVERLAPPED: 2.4, LOOKUPS: 1.2}
    found, base = planner.measure([OV, OVERLAPPED, LOOKUPS, ORT], opened, quiet)
    assert [each.plan for each in found] == [OV, OVERLAPPED, LOOKUPS, ORT] and base.plan == ORT
    assert [each.ratio for each in found] == [1.0, None, None, 0.5]
    assert found[2].why == "not tried: another plan of OpenVINO on CPU took 2.0 times as long"
    lookups = replace(LOOKUPS, target=CPU_ORT)
    scripted.seconds[lookups] = 1.1
    found, _ = planner.measure([OV, ORT, lookups], opened, quiet)
    assert [each.ratio for each in found] == [1.0, 0.5, 0.55]
    assert scripted.turned[-6:] == [ORT, lookups, lookups, ORT, ORT, lookups]


def confirmed(rows: list[Row], prefer: Any = "speed") -> list[tuple[Plan, float | None]]:
    order = planner.confirmed(rows, [7], opened, quiet, prefer)
    return [(each.plan, each.ratio and round(each.ratio, 3)) for each in order]


def test_what_takes_the_first_ones_place_has_to_win_twice(scripted: type[Scripted]) -> None:
    """A machine that was slow while the first plan ran makes another one look fast."""
    disturbed = [row(OV, 1.0), row(OVERLAPPED, 0.6), row(LOOKUPS, 0.8), row(ORT, 3.0)]
    scripted.seconds |= {OVERLAPPED: 1.2, LOOKUPS: 0.9}
    assert confirmed(disturbed) == [(LOOKUPS, 0.9), (OV, 1.0), (OVERLAPPED, 1.2), (ORT, 3.0)]
    assert scripted.made == [(plan, [7], WHOLE) for plan in (OV, OVERLAPPED, OV, LOOKUPS)]
    scripted.seconds[LOOKUPS] = 1.1
    assert [plan for plan, _ in confirmed(disturbed)] == [OV, LOOKUPS, OVERLAPPED, ORT]


def test_plans_that_are_near_the_best_are_timed_together(scripted: type[Scripted]) -> None:
    """By three turns each of them may look the best."""
    disturbed = [row(OV, 1.0), row(OVERLAPPED, 0.8), row(LOOKUPS, 0.9), row(ORT, 0.95)]
    scripted.seconds |= {OVERLAPPED: [0.9, 0.8, 0.9, 0.8, 0.9, 0.8, 0.9], LOOKUPS: 0.82}
    assert confirmed(disturbed)[:2] == [(LOOKUPS, 0.82), (OVERLAPPED, 0.9)]
    assert made() == [OV, OVERLAPPED, LOOKUPS], "and those further behind are not"
    assert scripted.turned[:6] == [OV, OVERLAPPED, LOOKUPS, LOOKUPS, OVERLAPPED, OV]
    assert [scripted.turned.count(plan) for plan in made()] == [5, 5, 5], "the one taken is 3 % behind at most"
    scripted.made.clear()
    scripted.seconds[OVERLAPPED] = 0.91
    unmetered = [replace(each, joules=None) for each in disturbed]
    confirmed(unmetered, "battery")
    assert made() == [OV, OVERLAPPED, OV, LOOKUPS], "energy is no time"


def test_only_plans_timed_together_say_which_schedule_is_faster(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is stored for good, and the first pass has few turns and guessed costs."""
    remembered: list[float] = []
    monkeypatch.setattr(schedule_choice, "remember", lambda target, model, found: remembered.append(found.gain))
    pipeline = fake_pipeline()
    pipeline.draft_model = object()
    rows = planner.measure([OV, OVERLAPPED], lambda plan: pipeline, quiet)[0]
    assert rows[1].ratio == 0.5 and not remembered
    planner.confirmed(rows, [7], lambda plan: pipeline, quiet, "speed")
    assert remembered == [2.0]


def test_where_the_first_one_seems_the_best_those_near_it_are_timed_again_too(scripted: type[Scripted]) -> None:
    scripted.seconds |= {LOOKUPS: 0.9}
    found = confirmed([row(OV, 1.0), row(OVERLAPPED, 1.2), row(LOOKUPS, 1.1)])
    assert found[0] == (LOOKUPS, 0.9) and made() == [OV, LOOKUPS]


def test_of_plans_timed_together_who_is_far_behind_leaves_soon(scripted: type[Scripted]) -> None:
    scripted.seconds |= {OVERLAPPED: 0.5, LOOKUPS: [0.55, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75]}
    found = confirmed([row(OV, 1.0), row(OVERLAPPED, 0.5), row(LOOKUPS, 0.55)])
    assert found == [(OVERLAPPED, 0.5), (LOOKUPS, 0.75), (OV, 1.0)]
    assert [scripted.turned.count(plan) for plan in made()] == [2, 5, 5], "one is left then, and the choice is made"


def test_plans_are_timed_in_groups_where_memory_is_short(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = iter([None, "no room", None])
    monkeypatch.setattr(planner, "no_room", lambda first: next(room))
    scripted.seconds |= {OVERLAPPED: 0.9, LOOKUPS: 0.84}
    found = confirmed([row(OV, 1.0), row(OVERLAPPED, 0.8), row(LOOKUPS, 0.86)])
    assert found == [(LOOKUPS, 0.84), (OVERLAPPED, 0.9), (OV, 1.0)]
    assert set(scripted.turned[:10]) == {OV, OVERLAPPED} and set(scripted.turned[10:]) == {OV, LOOKUPS}
    assert scripted.turned.count(OV) == 10


def test_a_group_is_gone_before_there_is_room_for_the_next(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: WeakSet[Any] = WeakSet()

    def open_plan(plan: Plan) -> Any:
        pipeline = fake_pipeline()
        pipeline.weights = type("Weights", (), {})()
        alive.add(pipeline.weights)
        return pipeline

    monkeypatch.setattr(planner, "no_room", lambda first: "no room" if len(alive) > 1 else None)
    scripted.seconds |= {OVERLAPPED: 0.9, LOOKUPS: 0.84}
    rows = planner.together(OV, [OVERLAPPED, LOOKUPS], [7], open_plan, quiet)
    assert [(each.plan, round(each.ratio or 0.0, 3)) for each in rows] == [(OVERLAPPED, 0.9), (LOOKUPS, 0.84)]
    monkeypatch.setattr(planner, "no_room", lambda first: "no room")
    scripted.made.clear()
    rows = planner.together(OV, [OVERLAPPED], [7], open_plan, quiet)
    assert rows == [Row(OVERLAPPED, why="not timed again: no room")] and made() == [OV]


def test_a_faster_plan_that_costs_more_energy_is_no_rival_on_battery(scripted: type[Scripted]) -> None:
    metered = [row(OV, 1.0, 2.0), row(OVERLAPPED, 0.6, 3.0), row(LOOKUPS, 0.8, 1.0), row(ORT, 0.7, 3.0)]
    scripted.seconds |= {LOOKUPS: 0.8}
    assert confirmed(metered, "battery")[0][0] == LOOKUPS and made() == [OV, LOOKUPS]


def test_a_plan_that_no_run_can_load_is_not_taken() -> None:
    """Its widths were guessed, and there may be no exact ones."""
    rows = [row(ORT, 0.8), row(OV, 1.0), row(LOOKUPS, 0.9)]

    def load(plan: Plan) -> Any:
        if plan == ORT:
            raise BackendError("exact numerics do not hold")

    found = planner.loadable(rows, load, quiet, "speed")
    assert [each.plan for each in found] == [LOOKUPS, OV, ORT]
    assert found[2].why == "does not run: exact numerics do not hold" and found[2].ratio is None
    with pytest.raises(BackendError, match="exact numerics"):
        planner.loadable(rows[:1], load, quiet, "speed")


def test_a_draft_too_cheap_to_overlap_is_not_tried(scripted: type[Scripted]) -> None:
    found = measure(fake_pipeline(draft_s=0.05))
    assert found[1].why == "not tried: a draft step is 0.05 of a forward, too little to overlap"
    assert OVERLAPPED not in made()


def test_a_place_far_behind_is_left(scripted: type[Scripted]) -> None:
    more = replace(ORT, schedule="overlapped")
    found = planner.measure([OV, ORT, more], opened, quiet)[0]
    assert found[1].ratio == 3.0 and more not in made()
    assert found[2].why == "not tried: another plan of ONNX Runtime on CPU took 3.0 times as long"


def test_a_place_is_compared_by_plans_of_the_same_kind(scripted: type[Scripted]) -> None:
    """Where lookups are fast, the first plan of another target is slow beside them, and its lookups may be the best."""
    lookups = replace(LOOKUPS, target=CPU_ORT)
    scripted.seconds |= {LOOKUPS: 0.6, ORT: 1.0, lookups: 0.5}
    found = planner.measure([OV, LOOKUPS, ORT, lookups], opened, quiet)[0]
    assert [round(each.ratio or 0.0, 3) for each in found] == [1.0, 0.6, 1.0, 0.5]


def test_overlapped_plans_beside_another_device_are_tried(scripted: type[Scripted]) -> None:
    """There the target has all cores."""
    pairs = [Plan(CPU, GPU), Plan(CPU, GPU, "overlapped")]
    scripted.seconds |= {OVERLAPPED: 1.7, pairs[0]: 1.0, pairs[1]: 0.8}
    found = planner.measure([OV, OVERLAPPED, *pairs], opened, quiet)[0]
    assert found[3].ratio == 0.8


def test_overlapped_plans_of_a_target_are_left_where_one_is_far_behind(scripted: type[Scripted]) -> None:
    """It has fewer cores in all of them."""
    others = [replace(Plan(CPU, CPU_ORT), schedule=schedule) for schedule in ("synchronous", "overlapped")]
    scripted.seconds |= {OVERLAPPED: 1.7, **dict.fromkeys(others, 1.0)}
    found = planner.measure([OV, OVERLAPPED, *others], opened, quiet)[0]
    assert found[2].ratio == 1.0
    assert found[3].why == "not tried: another overlapped plan of OpenVINO on CPU took 1.7 times as long"


def test_two_plans_are_not_loaded_where_memory_is_short(scripted: type[Scripted]) -> None:
    found = measure(fake_pipeline(weights=10**15))
    assert all("GB of memory needed" in each.why for each in found[1:]) and made() == [OV]


def test_the_table_is_stored_and_measured_again_when_asked(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    monkeypatch.setattr("edgespec.machine.other_programs.Others.cores", lambda self: 0.0)

    loaded: list[Plan] = []
    run: list[Plan] = []

    def loads(into: list[Plan]) -> Callable[[Plan], Any]:
        return lambda plan: into.append(plan) or fake_pipeline()

    def table(name: str = "m", **how: bool) -> PlanTable:
        plans = [OV, OVERLAPPED]
        return planner.plan("key", name, plans, opened, loads(loaded), loads(run), quiet, prefer="speed", **how)

    assert table().taken == OVERLAPPED and table().text == (1,) * 32
    scripted.seconds[OVERLAPPED] = 9.0
    assert table().taken == OVERLAPPED and len(scripted.made) == 4
    assert [table(name).model for name in ("m", "renamed")] == ["m", "renamed"]
    assert loaded == [OV, OVERLAPPED], "what decides is loaded as a run loads it"
    assert run == [OVERLAPPED], "and what is taken is tried as it will run"
    assert table(again=True).taken == OV and len(scripted.made) == 6
