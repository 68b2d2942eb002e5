"""What was measured is remembered, checked when it is read, and measured once by processes that begin together."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import edgespec
from edgespec.adaptive.calibration import ForwardTimes
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.exact_widths import ExactWidths
from edgespec.machine import measure_forwards, measurement_store
from edgespec.machine.engine_comparison import Comparison
from edgespec.machine.loader import Machine
from edgespec.machine.measure_forwards import Calibration
from edgespec.machine.other_programs import Others

WIDTHS: dict[str, Any] = {"least": 5, "most": 64}
TIMES: dict[str, Any] = {
    "widths": [5, 8, 17],
    "short": 64,
    "long": 512,
    "at_short_s": [0.010, 0.012, 0.02],
    "at_long_s": [0.011, 0.013, 0.022],
    "width_switch_s": 0.004,
    "cache_refill_s": 0.0,
    "prefill_s_per_token": 0.0004,
}
PACE = {"read_s": 0.01, "write_s": 0.03, "copy_s": 0.02}
ENGINES: dict[str, Any] = {
    "model": "tiny",
    "numerics": "exact",
    "paces": {"openvino": PACE, "onnxruntime": PACE | {"write_s": 0.02}},
    "noise": 0.01,
}
NONSENSE: list[tuple[type, dict[str, Any]]] = [
    (ExactWidths, {"least": -5}), (ExactWidths, {"least": 10**6}), (ExactWidths, {"most": 0}),
    (ExactWidths, {"step": 3}), (ExactWidths, {"step": 2}), (ExactWidths, {"step": 0}),
    (ExactWidths, {"least": 64, "most": 16}), (ExactWidths, {"most": 10**9}), (ExactWidths, {"most": 63}),
    (ForwardTimes, {"at_short_s": [0.0, 0.0, 0.0]}), (ForwardTimes, {"at_long_s": [-1.0, 0.013, 0.022]}),
    (ForwardTimes, {"widths": [], "at_short_s": [], "at_long_s": []}), (ForwardTimes, {"at_short_s": [0.01]}),
    (ForwardTimes, {"widths": [0, 8, 17]}), (ForwardTimes, {"widths": [8, 5, 17]}), (ForwardTimes, {"long": 8}),
    (ForwardTimes, {"width_switch_s": -0.1}), (ForwardTimes, {"prefill_s_per_token": 1e999}),
    (ForwardTimes, {"at_short_s": "soon"}), (ForwardTimes, {"width_step": 2}), (ForwardTimes, {"width_step": 0}),
    (Calibration, {"other_cores": -1.0}), (Calibration, {"times": {}}), (Calibration, {"other_cores": 1e999}),
    (Comparison, {"paces": {"onnxruntime": PACE}}), (Comparison, {"paces": {"openvino": PACE, "torch": PACE}}),
    (Comparison, {"paces": {"openvino": PACE, "onnxruntime": PACE | {"write_s": 0.0}}}), (Comparison, {"others": -1.0}),
    (Comparison, {"paces": {"openvino": PACE, "onnxruntime": PACE | {"copy_s": 1e999}}}), (Comparison, {"noise": -0.1}),
]  # fmt: skip
SENSE: dict[type, dict[str, Any]] = {
    ExactWidths: WIDTHS,
    ForwardTimes: TIMES,
    Calibration: {"times": TIMES, "other_cores": 0.1},
    Comparison: ENGINES,
}


def use(found: Any) -> None:
    """As a run does."""
    match found:
        case ExactWidths():
            assert 1 <= found.least <= found.most <= 256
        case Comparison():
            assert found.faster in str(found)
        case Calibration() | ForwardTimes():
            cost = ForwardCost(found.times if isinstance(found, Calibration) else found)
            cost.begin()
            for width in (1, 4, 30):
                assert cost.width(width, 100) >= width and cost(width, 100) > 0
                cost.update(width, 100, cost.width(width, 100), 0.02)


@pytest.mark.parametrize(("kind", "changed"), NONSENSE)
def test_nonsense_is_not_known(tmp_path: Path, kind: type, changed: dict[str, Any]) -> None:
    file = tmp_path / "found.json"
    file.write_text(json.dumps(SENSE[kind]))
    use(measurement_store.read(file, kind))
    file.write_text(json.dumps(SENSE[kind] | changed))
    assert measurement_store.read(file, kind) is None


def mutated(content: dict[str, Any], draw: random.Random) -> bytes:
    """A few numbers replaced, or a few bytes."""
    text = json.dumps(content)
    if draw.random() < 0.5:
        data = bytearray(text.encode())
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return bytes(data[: draw.randint(0, len(data))] if draw.random() < 0.2 else data)

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: changed(each) for key, each in value.items() if draw.random() > 0.02}
        if isinstance(value, list):
            return [changed(each) for each in value][: draw.choice([None, None, None, 0, 1])]
        return draw.choice([0, -1, 1e-300, 1e300, 10**6, 2**70, None, "x"]) if draw.random() < 0.3 else value

    return json.dumps(changed(content)).encode()


@pytest.mark.parametrize("text", [b'{"zz":' + b"[" * 200_000, b"{" + b" " * (17 << 20) + b"}"])
def test_what_is_only_deep_or_large_is_not_known(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "found.json"
    file.write_bytes(text)
    assert measurement_store.read(file, ExactWidths) is None


@pytest.mark.parametrize("kind", SENSE)
def test_a_mutation_is_usable_or_not_known(tmp_path: Path, kind: type) -> None:
    file, known = tmp_path / "found.json", 0
    for seed in range(200):
        file.write_bytes(mutated(SENSE[kind], random.Random(seed)))
        found = measurement_store.read(file, kind)
        if found is not None:
            known += 1
            use(found)
    assert 0 < known < 150, "some of both"


def test_a_run_measures_nonsense_again(tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is right for another model: a width that this one cannot run."""
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))

    def generate() -> list[int]:
        return edgespec.load(tiny_ir.parent).generate([5, 6, 7], max_new_tokens=4, ignore_eos=True).token_ids

    expected = generate()
    measured = {path: json.loads(path.read_text()) for path in tmp_path.glob("measured/*.json")}
    unfit = TIMES | {"widths": [1000], "at_short_s": [1.0], "at_long_s": [1.0]}
    changes: list[dict[str, Any]] = [{"most": 10**9}, {"times": unfit}]
    for path, good in measured.items():
        for change in changes:
            if set(change) <= set(good):
                path.write_text(json.dumps(good | change))
                assert generate() == expected
                assert set(json.loads(path.read_text())) == set(good)
                assert json.loads(path.read_text()) != good | change
    assert len(measured) == 2 and not list(tmp_path.glob("measured/*.tmp"))


def test_a_calibration_made_under_load_is_measured_again_when_the_load_is_gone(
    tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    monkeypatch.setattr(Others, "cores", lambda self: 0.5)

    def record() -> dict[str, Any]:
        edgespec.load(tiny_ir.parent)
        [file] = tmp_path.glob("measured/forward_times-*.json")
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    noisy = record()
    assert noisy["other_cores"] == 0.5
    monkeypatch.setattr(measure_forwards, "busy", lambda seconds: True)
    assert record() == noisy, "the other programs are still there: a new one would be no better"
    monkeypatch.setattr(measure_forwards, "busy", lambda seconds: False)
    monkeypatch.setattr(Others, "cores", lambda self: 0.0)
    quiet = record()
    assert quiet["other_cores"] == 0.0 and quiet["times"] != noisy["times"]
    assert record() == quiet


def test_a_brief_load_stores_no_time_of_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's own time is glanced at then, and every later load would read what came of it."""
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    monkeypatch.setattr(Others, "cores", lambda self: 0.0)
    runs: list[int] = []
    head: Any = SimpleNamespace(fingerprint="head", repeat=lambda: runs.append(1))
    cache = SimpleNamespace(reset=lambda: None)
    target: Any = SimpleNamespace(
        numerics="exact", fingerprint="target", cache=cache, min_width=1, forward=lambda tokens: None
    )
    machine = Machine(512, progress=False)
    machine.brief = True
    target_s = ForwardCost(ForwardTimes((1,), 64, 512, (0.01,), (0.01,)))
    machine.call_costs(head, target, target_s)
    assert runs and not list(tmp_path.glob("measured/*.json"))
    machine.brief = False
    machine.call_costs(head, target, target_s)
    before = len(runs)
    machine.brief = True
    machine.call_costs(head, target, target_s)
    assert len(runs) == before and len(list(tmp_path.glob("measured/call-*.json"))) == 1, "what is known is read"


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for file in (tmp_path / "file" / "found.json", tmp_path / "folder"):
        file.name == "folder" and file.mkdir()
        assert measurement_store.remembered(file, lambda: None, lambda: ExactWidths(2, 64)) == ExactWidths(2, 64)
    assert not list(tmp_path.glob("*.tmp")), "nothing half-written stays"


def test_a_measurement_may_be_part_of_another(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner.json", tmp_path / "outer.json"

    def find() -> ExactWidths:
        return measurement_store.remembered(inner, lambda: None, lambda: ExactWidths(2, 64))

    assert measurement_store.remembered(outer, lambda: None, find) == ExactWidths(2, 64)
    assert inner.is_file() and outer.is_file()


def test_processes_that_begin_together_agree(tmp_path: Path) -> None:
    """Each would find another range; all go by the one of the process that measured."""
    script = """if True:
        import sys, time
        from pathlib import Path
        from edgespec.machine import measure_forwards, measurement_store
        from edgespec.backends.exact_widths import ExactWidths
        file, least = Path(sys.argv[1]), int(sys.argv[2])
        sys.stdin.readline()
        find = lambda: time.sleep(0.5) or ExactWidths(least, 64)
        print(measurement_store.remembered(file, lambda: measurement_store.read(file, ExactWidths), find).least)
    """
    command = [sys.executable, "-c", script, str(tmp_path / "measured" / "found.json")]
    processes = [
        subprocess.Popen([*command, str(least)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for least in (2, 3, 4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("now\n")
        process.stdin.flush()
    said = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(said) == 1 and said <= {"2", "3", "4"}


@pytest.mark.slow
def test_first_runs_at_once_choose_one_engine(tiny_fast_ir: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "EDGESPEC_BACKEND"}
    command = [sys.executable, "-m", "edgespec", "run", "hi", "-n", "4", "--json", "-m", str(tiny_fast_ir.parent)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment | {"EDGESPEC_CACHE": str(tmp_path)})
        for _ in range(3)
    ]
    chosen = {json.loads(process.communicate(timeout=120)[0])["backend"] for process in processes}
    assert len(chosen) == 1
