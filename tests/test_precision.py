"""No numeric property is inherited from the device or the model's file, and what was named is said."""

from __future__ import annotations

import json
from pathlib import Path

import openvino as ov
import pytest
from click.testing import CliRunner
from openvino import opset13 as ops

import edgespec
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.backends.openvino.settings import FULL_PRECISION, NUMERIC, Settings, reported
from edgespec.cli import cli
from tests.conftest import load_ir


def relu() -> ov.Model:
    given = ops.parameter([-1], ov.Type.f32)
    return ov.Model([ops.result(ops.relu(given))], [given])


def test_a_compile_that_leaves_a_precision_open_is_noticed(compiles: list[str]) -> None:
    """By whatever way it goes: the core's, the package's own, with names as strings or as objects."""
    core, hint = ov.Core(), ov.properties.hint.inference_precision
    core.compile_model(relu(), "CPU", FULL_PRECISION)
    core.compile_model(relu(), "CPU", {**FULL_PRECISION, hint: ov.Type.f32})
    ov.compile_model(relu(), "CPU", config=FULL_PRECISION)
    assert not compiles
    core.compile_model(relu(), "CPU")
    ov.compile_model(relu(), "CPU", {hint: ov.Type.f32})
    first, second = compiles
    compiles.clear()
    assert first.startswith("test_precision.py:") and all(name in first for name in NUMERIC)
    assert "INFERENCE_PRECISION_HINT" not in second and "KV_CACHE_PRECISION" in second


def test_a_precision_that_the_engine_does_not_take_is_noticed(
    compiles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    get_property = ov.CompiledModel.get_property

    def lies(compiled: ov.CompiledModel, name: str) -> object:
        return ov.Type.bf16 if name == "INFERENCE_PRECISION_HINT" else get_property(compiled, name)

    monkeypatch.setattr(ov.CompiledModel, "get_property", lies)
    ov.Core().compile_model(relu(), "CPU", FULL_PRECISION)
    found = [text.partition(" ")[2] for text in compiles]
    compiles.clear()
    assert found == ["asked for INFERENCE_PRECISION_HINT f32 and got bf16"]


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("settings", "kv", "rounded"),
    [
        (Settings.make("CPU", None), "f16", "32"),
        (Settings.make("CPU", "fast"), "u8", "32"),
        (Settings.of_draft("CPU"), "f16", "32"),
        (Settings.in_full_precision(), "f32", "0"),
    ],
)
def test_on_cpu_all_compute_in_f32_whatever_the_cpu_could_do(
    tiny_fast_ir: Path, settings: Settings, kv: str, rounded: str
) -> None:
    model = OpenVINOPagedModel(ov.Core(), tiny_fast_ir, "CPU", settings, capacity=64)
    assert reported(model.compiled) == dict(zip(NUMERIC, ("f32", kv, rounded), strict=True))
    assert model.capabilities.compute_precision == "f32"


def test_what_the_models_file_asks_for_does_not_count(tiny_ir: Path) -> None:
    """An IR in floating point asks for keys and values in f16."""
    asked = ov.Core().read_model(tiny_ir).get_rt_info(["runtime_options", "KV_CACHE_PRECISION"]).astype(str)
    assert asked == "f16"
    assert reported(load_ir(tiny_ir, "fast").compiled)["KV_CACHE_PRECISION"] == "u8"


def test_other_devices_compute_in_f16() -> None:
    for settings in (Settings.make("GPU.0", None), Settings.of_draft("GPU")):
        assert [settings.properties[name] for name in NUMERIC] == ["f16", "f16", "32"]


def test_what_was_measured_in_one_precision_is_not_taken_for_another(tiny_fast_ir: Path) -> None:
    def fingerprint(**other: str) -> str:
        settings = Settings("fast", 64, {**Settings.make("CPU", "fast").properties, **other})
        return OpenVINOPagedModel(ov.Core(), tiny_fast_ir, "CPU", settings, capacity=64).fingerprint

    found = {fingerprint(), fingerprint(KV_CACHE_PRECISION="f16"), fingerprint(DYNAMIC_QUANTIZATION_GROUP_SIZE="0")}
    assert len(found) == 3 and fingerprint() in found
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert fingerprint(INFERENCE_PRECISION_HINT="bf16") not in found


def test_the_precision_is_said(tiny_fast_ir: Path) -> None:
    folder = str(tiny_fast_ir.parent)
    for backend in ("openvino", "onnxruntime"):
        result = edgespec.load(folder, backend=backend, draft="none").generate([5, 6, 7], max_new_tokens=2)
        assert result.as_dict()["compute_precision"] == "f32"
    ran = CliRunner().invoke(cli, ["run", "hello", "-m", folder, "--draft", "none", "-n", "2", "--raw"])
    assert "exact in f32 on CPU with OpenVINO" in ran.stderr
    plan = json.loads(CliRunner().invoke(cli, ["doctor", "-m", folder, "--json"]).stdout)["model"]
    assert plan["compute_precision"] == "f32 on CPU, f16 elsewhere"
