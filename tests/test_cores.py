"""Hybrid CPUs: which cores are fast, and what each engine is told. No machine of the tests is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgespec.backends import cores
from edgespec.backends.cores import Threads, of_cpu_sets, of_linux
from edgespec.backends.openvino import settings
from edgespec.errors import DeviceError
from edgespec.load_options import LoadOptions
from edgespec.machine import devices, schedule_choice
from edgespec.machine.plans import Place, Plan, plans

HYBRID = {"P": (0, 2), "E": (4, 5, 6)}


def test_linux_lists_both_kinds_and_each_core_counts_once(tmp_path: Path) -> None:
    assert of_linux(tmp_path) == {}
    for name, processors in (("cpu_core", "0-3\n"), ("cpu_atom", "4-5\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpus").write_text(processors)
    for processor, core in enumerate((0, 0, 1, 1, 2, 3)):  # two processors a fast core
        folder = tmp_path / f"system/cpu/cpu{processor}/topology"
        folder.mkdir(parents=True)
        (folder / "core_id").write_text(f"{core}\n")
    assert of_linux(tmp_path) == {"P": (0, 2), "E": (4, 5)}


def cpu_set(processor: int, core: int, efficiency: int) -> bytes:
    return bytes([32, 0, 0, 0, *[0] * 10, processor, core, 0, 0, efficiency, *[0] * 13])


def test_windows_lists_cores_by_efficiency_class() -> None:
    data = cpu_set(0, 0, 1) + cpu_set(1, 0, 1) + cpu_set(2, 2, 0) + cpu_set(3, 3, 0)
    assert of_cpu_sets(data) == {"P": (0,), "E": (2, 3)}
    assert of_cpu_sets(cpu_set(0, 0, 0) + cpu_set(1, 1, 0)) == {}
    assert of_cpu_sets(b"") == of_cpu_sets(bytes(32)) == {}


def test_openvino_is_told_the_kind_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "kinds", lambda: HYBRID)
    made = settings.Settings.make("CPU.E", None)
    own = made.with_cores("CPU.E").properties
    assert (own["SCHEDULING_CORE_TYPE"], own["INFERENCE_NUM_THREADS"]) == ("ECORE_ONLY", "3")
    assert made.numerics == "exact" and made.with_cores("CPU") is made
    assert made.with_threads(2).with_cores("CPU.E").properties["INFERENCE_NUM_THREADS"] == "2", "beside another model"
    assert made.with_threads(9).with_cores("CPU.E").properties["INFERENCE_NUM_THREADS"] == "3", "it has no more"


def test_a_cpu_with_one_kind_has_no_such_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "kinds", dict)
    with pytest.raises(DeviceError, match="this CPU has cores of one kind; got CPU.P; allowed: CPU"):
        devices.require_device("CPU.P")
    monkeypatch.setattr(devices, "kinds", lambda: HYBRID)
    assert devices.require_device("CPU.P") == "CPU.P"


def test_models_on_different_kinds_share_no_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_choice, "available_cores", lambda: 4)
    assert schedule_choice.threads("CPU.P", "CPU.E") is None
    assert schedule_choice.threads("CPU", None) == Threads(3, 1)
    monkeypatch.setattr(schedule_choice, "kinds", lambda: HYBRID)
    assert schedule_choice.threads("CPU.P", None) == Threads(1, 1), "both on the two fast cores"


def test_plans_of_a_hybrid_cpu() -> None:
    places = [Place(device, "openvino") for device in ("CPU", "CPU.P", "CPU.E")]
    found = plans(LoadOptions(device="auto"), places, has_model=True, is_head=False)
    pairs = {(plan.target.device, plan.draft_model.device) for plan in found if plan.draft_model}
    assert pairs == {("CPU", "CPU"), *((a, b) for a in ("CPU.P", "CPU.E") for b in ("CPU.P", "CPU.E"))}
    assert Plan(places[1], places[2], "overlapped") in found and Plan(places[1], places[1], "overlapped") not in found


def test_here_kinds_are_those_of_the_system() -> None:
    assert set(cores.kinds()) in ({"P", "E"}, set())
