"""Plans: which there are, which is taken, and that the user's word wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgespec import loading
from edgespec.errors import SettingError
from edgespec.load_options import LoadOptions
from edgespec.machine.plans import Place, Plan, plans
from edgespec.plan_rows import Row, ranked
from tests.scripted_plans import AUTO, CPU, CPU_ORT, GPU, LOOKUPS, ORT, OV, OVERLAPPED, row


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
