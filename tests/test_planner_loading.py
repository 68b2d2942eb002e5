"""What a load does with the plan that is taken, and what a plan is remembered by."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgespec import engine_trial, loading, planner
from edgespec.errors import DeviceError, EdgespecError, NoSuchModel, SettingError
from edgespec.hub.resolve import resolve
from edgespec.load_options import LoadOptions
from edgespec.machine import engine_choice
from edgespec.machine.plans import Plan
from edgespec.plan_rows import PlanTable
from tests import scripted_plans
from tests.scripted_plans import AUTO, CPU, CPU_ORT, LOOKUPS, OV, OVERLAPPED, Scripted, fake_pipeline, row

scripted = scripted_plans.scripted


def test_auto_loads_the_plan_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LoadOptions] = []
    table = PlanTable("m", "speed", (row(replace(LOOKUPS, target=CPU_ORT), 1.0),))
    monkeypatch.setattr(loading, "_fetched", lambda ref, options: (None, None))
    monkeypatch.setattr(loading, "_planned", lambda pair, options, chosen, run: table)
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


def test_auto_loads_the_plan_that_is_taken_once(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the planner tried last is what runs. With a stored table nothing else is loaded."""
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    monkeypatch.setattr("edgespec.machine.other_programs.Others.cores", lambda self: 0.0)
    pair = SimpleNamespace(contents=tuple, name="m")
    monkeypatch.setattr(loading, "_fetched", lambda ref, options: (pair, None))
    monkeypatch.setattr("edgespec.drafter_loading.planned", lambda pair, chosen: (None, None))
    monkeypatch.setattr(loading, "plans", lambda *args, **how: [OV, OVERLAPPED])
    monkeypatch.setattr(planner, "key_of", lambda contents, options: "key")
    loaded: list[tuple[str | None, Any]] = []

    def wired(pair: Any, options: LoadOptions, draft: Any, *, unasked: bool = False, brief: bool = False) -> Any:
        pipeline = fake_pipeline()
        if not brief:
            loaded.append((options.schedule, pipeline))
        return pipeline

    monkeypatch.setattr(loading, "_wired", wired)
    found = loading.load("m", device="auto")
    assert [schedule for schedule, _ in loaded] == ["synchronous", "overlapped", "overlapped"], "two to decide"
    assert found is loaded[-1][1]
    assert loading.load("m", device="auto") is loaded[-1][1] and len(loaded) == 4 and len(scripted.made) == 4


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


def keys_of(monkeypatch: pytest.MonkeyPatch, *folders: Path, options: LoadOptions = AUTO) -> list[tuple[str, str]]:
    """By which the plans of these folders are stored, and what their tables are called."""
    found: list[tuple[str, str]] = []
    monkeypatch.setattr(planner, "plan", lambda key, name, *rest, **how: found.append((key, name)))
    for folder in folders:
        loading.plan(folder, options)
    return found


def with_another_bit(weights: Path) -> None:
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def test_plans_of_a_model_that_was_renamed_are_its_plans(
    monkeypatch: pytest.MonkeyPatch, tiny_ir: Path, tmp_path: Path
) -> None:
    """And other weights under the same name have their own. A folder without a manifest names no hash."""
    one, other = (shutil.copytree(tiny_ir.parent, tmp_path / name) for name in ("one", "other"))
    weights = (tmp_path / "again" / "one" / tiny_ir.name).with_suffix(".bin")
    shutil.copytree(one, weights.parent)
    with_another_bit(weights)
    (first, name), (moved, new_name), (changed, same_name) = keys_of(monkeypatch, one, other, weights.parent)
    assert (name, new_name, same_name) == ("one", "other", "one")
    assert first == moved != changed


def test_plans_of_a_draft_that_was_trained_again_are_not_its_plans(
    monkeypatch: pytest.MonkeyPatch, tiny_ir: Path, tmp_path: Path
) -> None:
    """It lies where the one before lay."""
    draft = shutil.copytree(tiny_ir.parent, tmp_path / "draft")
    asked = replace(AUTO, draft=str(draft))
    before = keys_of(monkeypatch, tiny_ir.parent, tiny_ir.parent, options=asked)
    with_another_bit((draft / tiny_ir.name).with_suffix(".bin"))
    assert before[0] == before[1] != keys_of(monkeypatch, tiny_ir.parent, options=asked)[0]


def test_no_plan_is_tried_with_a_draft_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tiny_ir: Path) -> None:
    monkeypatch.setattr(planner, "plan", lambda *args, **how: pytest.fail("it was tried"))
    with pytest.raises(NoSuchModel, match="no such draft; got none-such; allowed: auto, none, ngram"):
        loading.plan(tiny_ir.parent, replace(AUTO, draft="none-such"))


def test_a_trial_leaves_what_was_remembered_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LoadOptions] = []
    monkeypatch.setattr(loading, "_wired", lambda pair, options, draft, brief: seen.append(options))
    asked = LoadOptions(device="auto", draft="recycling", remember=True)
    loading._opens(None, asked, None)(Plan(CPU, draft="recycling"))  # type: ignore[arg-type]
    assert not seen[0].remember and seen[0].draft == "recycling"
    assert Plan(CPU, draft="recycling").applied(asked).remember, "the plan that is taken remembers"


def test_a_trial_has_room_for_its_own_texts(monkeypatch: pytest.MonkeyPatch, tiny_ir: Path) -> None:
    """However short the context is that was asked for. One that is too long is refused before anything is timed."""
    seen: list[int | None] = []
    pair = resolve(str(tiny_ir.parent), progress=False)
    monkeypatch.setattr(loading, "_wired", lambda pair, options, draft, brief: seen.append(options.context_length))
    for asked in (None, 16, 300):
        loading._opens(pair, LoadOptions(device="auto", context_length=asked), None)(Plan(CPU))
    assert seen == [None, engine_trial.ROWS_NEEDED, 300]
    with pytest.raises(SettingError, match="context_length; got 513; allowed: 1 to 512"):
        loading.plan(tiny_ir.parent, LoadOptions(device="auto", context_length=513))


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
