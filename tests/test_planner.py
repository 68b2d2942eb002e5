"""Plans: which there are, which is taken, and that the user's word wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import pytest

from edgespec import loading, planner
from edgespec.errors import BackendError, DeviceError, EdgespecError, SettingError
from edgespec.load_options import LoadOptions
from edgespec.machine import energy, engine_choice, schedule_choice
from edgespec.machine.engine_comparison import Pace
from edgespec.machine.plans import Place, Plan, plans
from edgespec.plan_trial import WHOLE, Length, Runner
from edgespec.planner import PlanTable, Row, ranked
from edgespec.stats import Guessed, Stats
from edgespec.types import Round

AUTO = LoadOptions(device="auto")
CPU, CPU_ORT, GPU = Place("CPU", "openvino"), Place("CPU", "onnxruntime"), Place("GPU", "openvino")
OV, ORT = Plan(CPU, CPU), Plan(CPU_ORT, CPU_ORT)
OVERLAPPED = replace(OV, schedule="overlapped")
LOOKUPS = Plan(CPU, draft="ngram")


def here(options: LoadOptions = AUTO, places: tuple[Place, ...] = (CPU, CPU_ORT), **how: bool) -> list[Plan]:
    return plans(options, places, **({"has_model": True, "is_head": False} | how))


# --- Which plans there are


def test_on_a_cpu_plans_are_engines_schedules_and_drafters() -> None:
    mixed = Plan(CPU, CPU_ORT)
    assert here()[:5] == [OV, OVERLAPPED, mixed, replace(mixed, schedule="overlapped"), LOOKUPS]
    assert [plan.target for plan in here()] == 5 * [CPU] + 5 * [CPU_ORT]
    assert here(is_head=True) == [Plan(CPU), LOOKUPS, Plan(CPU_ORT), replace(LOOKUPS, target=CPU_ORT)]
    assert here(has_model=False) == [Plan(CPU), Plan(CPU_ORT)]


def test_with_a_gpu_each_model_may_run_on_either() -> None:
    found = here(places=(CPU, GPU))
    assert {(plan.target, plan.draft_model) for plan in found if plan.draft_model} == {
        (CPU, CPU), (CPU, GPU), (GPU, CPU), (GPU, GPU),
    }  # fmt: skip
    assert Plan(GPU, GPU, "overlapped") not in found and Plan(GPU, CPU, "overlapped") in found


@pytest.mark.parametrize(
    "given, holds",
    [
        ({"backend": "onnxruntime"}, lambda plan: plan.target == CPU_ORT),
        ({"draft_backend": "onnxruntime"}, lambda plan: plan.draft_model in (CPU_ORT, None)),
        ({"schedule": "synchronous"}, lambda plan: plan.schedule == "synchronous"),
        ({"schedule": "overlapped"}, lambda plan: plan.schedule == "overlapped"),
        ({"draft_device": "GPU"}, lambda plan: plan.draft_model in (GPU, None)),
        ({"device": "GPU"}, lambda plan: plan.target == GPU),
        ({"draft": "small"}, lambda plan: plan.draft == "small"),
    ],
)
def test_what_the_user_names_restricts_the_plans(given: dict[str, Any], holds: Callable[[Plan], bool]) -> None:
    places = (CPU, CPU_ORT, GPU)
    found = here(LoadOptions(**({"device": "auto"} | given)), places)
    assert found and all(map(holds, found))
    assert len(found) < len(here(places=places))


def test_a_device_that_is_not_listed_is_taken_at_the_users_word() -> None:
    """NPU on a CPU, for one; a device that is not there fails when it is loaded."""
    assert {plan.target for plan in here(LoadOptions(device="NPU"))} == {Place("NPU", "openvino")}


def test_a_plan_becomes_options_and_leaves_those_of_the_user() -> None:
    asked = LoadOptions(device="auto", numerics="fast", context_length=512)
    options = Plan(CPU_ORT, GPU, "overlapped").applied(asked)
    assert (options.device, options.backend, options.schedule) == ("CPU", "onnxruntime", "overlapped")
    assert (options.draft_device, options.draft_backend) == ("GPU", "openvino")
    assert (options.numerics, options.context_length) == ("fast", 512)
    assert OV.applied(asked).draft_device is None  # beside its target
    anywhere = LoadOptions(device="auto", draft_device="auto")
    assert OV.applied(anywhere).draft_device is None and Plan(CPU, GPU).applied(anywhere).draft_device == "GPU"


@pytest.mark.parametrize("given", [{"draft_from": "texts"}, {"num_draft_tokens": 0}])
def test_no_plan_overlaps_what_the_overlapped_schedule_refuses(given: dict[str, Any]) -> None:
    found = here(LoadOptions(**({"device": "auto"} | given)))
    assert found and {plan.schedule for plan in found} == {"synchronous"}


def test_to_prefer_something_a_choice_is_needed() -> None:
    with pytest.raises(SettingError, match="prefer; got battery. Add --device auto"):
        loading.load(prefer="battery")


# --- Which one is taken


def row(plan: Plan, ratio: float, joules: float = 1.0) -> Row:
    return Row(plan, Pace(0.001, 0.01 * ratio, 0.005 * ratio), ratio, joules)


def test_the_fastest_is_taken_and_each_row_says_why() -> None:
    failed = Row(ORT, why="does not run: no room")
    found = ranked([row(OV, 1.0), failed, row(OVERLAPPED, 0.8), row(LOOKUPS, 1.2)], "speed")
    assert [(each.plan, each.why) for each in found] == [
        (OVERLAPPED, "the fastest"), (OV, "25% slower"), (LOOKUPS, "50% slower"), (ORT, "does not run: no room"),
    ]  # fmt: skip


def test_within_noise_the_first_plan_stays() -> None:
    found = ranked([row(OV, 1.0), row(OVERLAPPED, 0.985)], "speed")
    assert (found[0].plan, found[0].why) == (OV, "no other is faster")


def test_battery_takes_the_least_energy_but_not_at_any_speed() -> None:
    rows = [row(OV, 1.0, 3.0), row(LOOKUPS, 1.3, 2.0), row(ORT, 1.8, 1.0)]
    assert ranked(rows, "battery")[0].plan == LOOKUPS
    assert ranked([replace(each, joules=None) for each in rows], "battery")[0].plan == OV


class Scripted(Runner):
    """A plan whose uses take given seconds: the same ones always, or one after another."""

    seconds: dict[Plan, float | list[float]] = {}  # noqa: RUF012
    made: list[tuple[Plan, list[int], Length]] = []  # noqa: RUF012
    turned: list[Plan] = []  # noqa: RUF012

    def __init__(self, plan: Plan, pipeline: Any, text: Sequence[int] = (), length: Length = WHOLE) -> None:
        self.plan, self.pipeline, self.length = plan, pipeline, length
        self.written, self.edit = [*text] or [1] * 32, [1] * 40
        self.turns: list[Pace] = []
        self.joules, self.metered, self.target, self.prompt = 1.0, False, pipeline.target, [1, 2]
        Scripted.made.append((plan, list(text), length))
        given = self.seconds[plan]
        first = given if isinstance(given, float) else given[0]
        self.warm_up = Pace(first, first, first)

    def turn(self) -> Pace:
        given = self.seconds[self.plan]
        seconds = given if isinstance(given, float) else given[len(self.turns)]
        self.turns.append(Pace(seconds, seconds, seconds))
        Scripted.turned.append(self.plan)
        return self.turns[-1]


def cost(seconds: float) -> Any:
    return SimpleNamespace(seconds=lambda width, context: seconds)


def fake_pipeline(draft_s: float = 0.3, weights: int = 0) -> Any:
    manifest = SimpleNamespace(target=SimpleNamespace(weights_bytes=weights))
    arbiter = SimpleNamespace(target_s=cost(1.0), draft_s=cost(draft_s))
    return SimpleNamespace(bundle=SimpleNamespace(manifest=manifest), arbiter=arbiter, target=None, draft_model=None)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    monkeypatch.setattr(planner, "Runner", Scripted)
    Scripted.made, Scripted.turned = [], []
    Scripted.seconds = {OV: 1.0, OVERLAPPED: 0.5, LOOKUPS: 2.0, ORT: 3.0}
    return Scripted


def opened(plan: Plan) -> Any:
    return fake_pipeline()


def quiet(what: str) -> None:
    pass


def made() -> list[Plan]:
    return [plan for plan, _, _ in Scripted.made]


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
    assert [scripted.turned.count(plan) for plan in made()] == [4, 7, 7], "who lost four of seven rounds leaves"
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
    assert [scripted.turned.count(plan) for plan in made()] == [2, 4, 4], "one is left then, and the choice is made"


def test_plans_are_timed_in_groups_where_memory_is_short(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = iter([None, "no room", None])
    monkeypatch.setattr(planner, "_no_room", lambda first: next(room))
    scripted.seconds |= {OVERLAPPED: 0.9, LOOKUPS: 0.84}
    found = confirmed([row(OV, 1.0), row(OVERLAPPED, 0.8), row(LOOKUPS, 0.86)])
    assert found == [(LOOKUPS, 0.84), (OVERLAPPED, 0.9), (OV, 1.0)]
    assert set(scripted.turned[:8]) == {OV, OVERLAPPED} and set(scripted.turned[8:]) == {OV, LOOKUPS}
    assert scripted.turned.count(OV) == 8


def test_a_group_is_gone_before_there_is_room_for_the_next(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: WeakSet[Any] = WeakSet()

    def open_plan(plan: Plan) -> Any:
        pipeline = fake_pipeline()
        pipeline.weights = type("Weights", (), {})()
        alive.add(pipeline.weights)
        return pipeline

    monkeypatch.setattr(planner, "_no_room", lambda first: "no room" if len(alive) > 1 else None)
    scripted.seconds |= {OVERLAPPED: 0.9, LOOKUPS: 0.84}
    rows = planner.together(OV, [OVERLAPPED, LOOKUPS], [7], open_plan, quiet)
    assert [(each.plan, round(each.ratio or 0.0, 3)) for each in rows] == [(OVERLAPPED, 0.9), (LOOKUPS, 0.84)]
    monkeypatch.setattr(planner, "_no_room", lambda first: "no room")
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


def verified(*plans: Plan, pipeline: Any) -> planner.Verified:
    rows = tuple(row(plan, 1.0) for plan in plans)
    return planner.verify(PlanTable("m", "speed", rows, text=(7,)), lambda plan: pipeline, quiet, pairs=7)


def test_to_verify_a_choice_the_plans_that_were_not_tried_are_timed_too(scripted: type[Scripted]) -> None:
    """Each against the one taken, and not against the first of the table; with the text that chose it."""
    scripted.seconds[OVERLAPPED] = 0.9
    pipeline = fake_pipeline(draft_s=0.05)
    found = verified(OV, OVERLAPPED, LOOKUPS, ORT, pipeline=pipeline)
    assert found == planner.Verified(0.9, OVERLAPPED, timed=4, pairs=7)
    assert all(text == [7] and length == WHOLE for _, text, length in scripted.made)
    assert [scripted.turned.count(plan) for plan in (OVERLAPPED, LOOKUPS, ORT)] == [7, 4, 4]
    scripted.turned.clear()
    scripted.seconds[LOOKUPS] = 1.1
    verified(OV, LOOKUPS, pipeline=pipeline)
    assert scripted.turned.count(LOOKUPS) == 4, "who lost four of seven pairs leaves"
    best = verified(OVERLAPPED, OV, ORT, pipeline=pipeline)
    assert (best.share, best.fastest) == (1.0, OVERLAPPED)
    scripted.seconds[LOOKUPS] = [9.0, *6 * [0.5]]
    found = verified(OV, LOOKUPS, pipeline=pipeline)
    assert (found.share, found.fastest) == (0.5, LOOKUPS), "one turn was disturbed"


def test_a_choice_that_does_not_run_now_is_not_judged(scripted: type[Scripted]) -> None:
    def open_plan(plan: Plan) -> Any:
        if plan == OV:
            raise BackendError("no such kernel")
        return fake_pipeline()

    with pytest.raises(BackendError, match="the plan that was taken does not run: no such kernel"):
        planner.verify(PlanTable("m", "speed", (row(OV, 1.0), row(ORT, 1.0))), open_plan, quiet, pairs=7)


def test_two_plans_are_not_loaded_where_memory_is_short(scripted: type[Scripted]) -> None:
    found = measure(fake_pipeline(weights=10**15))
    assert all("GB of memory needed" in each.why for each in found[1:]) and made() == [OV]


def test_the_table_is_stored_and_measured_again_when_asked(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    monkeypatch.setattr("edgespec.machine.other_programs.Others.cores", lambda self: 0.0)

    loaded: list[Plan] = []

    def load(plan: Plan) -> Any:
        loaded.append(plan)
        return fake_pipeline()

    def table(**how: bool) -> PlanTable:
        plans = [OV, OVERLAPPED]
        return planner.plan("key", "m", plans, opened, load, quiet, prefer="speed", **how)

    assert table().taken == OVERLAPPED and table().text == (1,) * 32
    scripted.seconds[OVERLAPPED] = 9.0
    assert table().taken == OVERLAPPED and len(scripted.made) == 4
    assert loaded == [OV, OVERLAPPED, OVERLAPPED], "what decides is loaded as a run loads it"
    assert table(again=True).taken == OV and len(scripted.made) == 6


# --- What a load does with it


def test_auto_loads_the_plan_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LoadOptions] = []
    table = PlanTable("m", "speed", (row(replace(LOOKUPS, target=CPU_ORT), 1.0),))
    monkeypatch.setattr(loading, "_fetched", lambda ref, options: (None, None))
    monkeypatch.setattr(loading, "_planned", lambda pair, options, chosen: table)
    asked: list[bool] = []

    def wired(pair: Any, options: LoadOptions, draft: Any, *, unasked: bool) -> Any:
        asked.append(not unasked)
        seen.append(options)
        return draft

    monkeypatch.setattr(loading, "_wired", wired)
    loading.load("m", device="auto", schedule="synchronous")
    loaded: Any = loading.load("m", device="auto")
    assert loaded == "ngram"
    assert (seen[0].device, seen[0].backend, seen[0].draft) == ("CPU", "onnxruntime", "ngram")
    assert asked == [True, False], "who names no schedule has texts that this one refuses, too"


@pytest.mark.parametrize("options", [{"device": "gpu.7"}, {"device": "auto", "draft_device": "gpu.7"}])
def test_no_plan_is_timed_for_a_device_that_is_not_here(tiny_ir: Path, options: dict[str, str]) -> None:
    with pytest.raises(DeviceError, match=r"no such device here; got GPU\.7"):
        loading.plan(tiny_ir.parent, LoadOptions(**options))  # type: ignore[arg-type]


def test_fewer_cores_are_another_machine(monkeypatch: pytest.MonkeyPatch, tiny_ir: Path) -> None:
    """A process may be held to some of them. The engine's own number of threads does not say so."""
    keys = set()
    for cores in (1, 2):
        for module in (planner, engine_choice):
            monkeypatch.setattr(module, "available_cores", lambda cores=cores: cores)
        keys |= {planner.key_of("m", AUTO), engine_choice._key(tiny_ir, None, ())}
    assert len(keys) == 4


def test_a_trial_leaves_what_was_remembered_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LoadOptions] = []
    monkeypatch.setattr(loading, "_wired", lambda pair, options, draft, brief: seen.append(options))
    asked = LoadOptions(device="auto", draft="recycling", remember=True)
    loading._opens(None, asked, None)(Plan(CPU, draft="recycling"))  # type: ignore[arg-type]
    assert not seen[0].remember and seen[0].draft == "recycling"
    assert Plan(CPU, draft="recycling").applied(asked).remember, "the plan that is taken remembers"


def test_prefer_is_checked() -> None:
    with pytest.raises(EdgespecError, match="prefer; got silence; allowed: speed, battery"):
        LoadOptions(prefer="silence")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.real
def test_the_default_pair_is_planned_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGESPEC_BACKEND", raising=False)
    table = loading.plan("default", LoadOptions(device="auto"), again=True)
    assert {each.plan.target.backend for each in table.rows} == {"openvino", "onnxruntime"}
    assert sum(each.ratio is not None for each in table.rows) >= 4
    assert loading.load("default", device="auto").target.capabilities.backend == table.taken.target.backend


# --- Energy


def test_the_counter_of_the_cpu(tmp_path: Path) -> None:
    assert energy.read_joules(tmp_path / "none") is None
    (tmp_path / "energy_uj").write_text("2500000\n")
    (tmp_path / "max_energy_range_uj").write_text("10000000\n")
    assert energy.read_joules(tmp_path) == 2.5
    assert energy.joules_between(2.5, 4.0, tmp_path) == 1.5
    assert energy.joules_between(9.0, 1.0, tmp_path) == 2.0  # it began again at 10
    assert energy.joules_between(None, 4.0) is None


def test_the_model_of_energy() -> None:
    rounds = [Round("m", 2, 2, 1, 2, 1.0, 2.0, 0.0)] * 2  # 1 s to draft, 2 s to verify, twice
    stats = Stats(rounds=rounds)
    assert energy.modelled_joules(stats, "CPU", "CPU") == 6 * 25
    assert energy.modelled_joules(stats, "GPU.1", "NPU") == 4 * 20 + 2 * 6
    overlapped = Stats(rounds=rounds, guessed=Guessed())
    assert energy.modelled_joules(overlapped, "CPU", None) == 4 * 25  # they share the cores
    assert energy.modelled_joules(overlapped, "GPU", "CPU") == 4 * 20 + 4 * 25
