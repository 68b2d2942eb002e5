"""ONNX Runtime's providers as devices: which are here, the reason if one is not, and one that gives way unasked.

With onnxruntime-openvino installed, its device is run too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgespec.backends.onnx import providers
from edgespec.backends.onnx.bound_cache import BoundCache
from edgespec.backends.onnx.session import OnnxRuntimeModel
from edgespec.errors import DeviceError, SettingError
from edgespec.machine import devices, engine_choice
from tests.conftest import load_onnx
from tests.contract import close, fresh_logits

HAS_OPENVINO = "OpenVINOExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the installed package brings."""
    names = ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    return names


@pytest.mark.parametrize(
    ("device", "where", "package"),
    [
        ("CUDA", "NVIDIA", "onnxruntime-gpu"),
        ("DML.1", "Windows", "onnxruntime-directml"),
        ("OPENVINO.GPU", "Intel", "onnxruntime-openvino"),
    ],
)
def test_a_device_that_is_not_here_is_an_error_with_its_package(
    device: str, where: str, package: str, installed: list[str]
) -> None:
    told = rf"device {device} is not here: the installed onnxruntime .* has CPU\. For {where}: pip uninstall.*{package}"
    with pytest.raises(DeviceError, match=told):
        devices.require_device(device)
    assert devices.onnx_devices()[device.split(".")[0]].endswith("has CPU")
    installed.insert(0, providers.PROVIDERS[device.split(".")[0]].name)
    assert devices.require_device(device) == device and devices.onnx_devices()[device.split(".")[0]] == "here"


@pytest.mark.parametrize("device", ["CUDA.x", "CUDA.GPU", "OPENVINO.TPU", "OPENVINO.0"])
def test_a_part_of_a_device_is_one_that_there_can_be(device: str, installed: list[str]) -> None:
    with pytest.raises(DeviceError, match=f"no such device of ONNX Runtime; got {device}; allowed: "):
        providers.require(device)


def test_a_device_says_which_provider_runs_and_the_cpu_does_the_rest() -> None:
    cpu: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
    assert providers.session_providers("CPU") == [cpu]
    assert providers.session_providers("CUDA") == [("CUDAExecutionProvider", {"device_id": "0"}), cpu]
    assert providers.session_providers("DML.1")[0] == ("DmlExecutionProvider", {"device_id": "1"})
    assert providers.session_providers("OPENVINO")[0][1] == {"device_type": "CPU"}
    assert providers.session_providers("OPENVINO.NPU")[0][1] == {"device_type": "NPU"}


def test_a_provider_that_gives_way_to_the_cpu_is_an_error(tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA does where its libraries are missing. A session without it stands for that here."""
    made = onnxruntime.InferenceSession

    def on_cpu(graph: Any, options: Any, providers: Any) -> Any:
        return made(graph, options, providers=["CPUExecutionProvider"])

    folder = load_onnx(tiny_fast_ir, "fast").folder
    monkeypatch.setattr(onnxruntime, "InferenceSession", on_cpu)
    with pytest.raises(DeviceError, match=r"CUDA does not start.*got CPUExecutionProvider; allowed: CUDAExec"):
        OnnxRuntimeModel(folder, "fast", capacity=64, device="CUDA")


def test_a_device_names_its_engine(installed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in (None, "onnxruntime"):
        assert engine_choice.named(asked, "CUDA") == "onnxruntime"
    with pytest.raises(SettingError, match="belongs to ONNX Runtime; got DML"):
        engine_choice.named("openvino", "DML")
    with pytest.raises(SettingError, match=r"no such device; got device GPU; allowed: CPU, OPENVINO, DML, CUDA"):
        engine_choice.named("onnxruntime", "GPU")
    assert engine_choice.of_ready(Path("model.onnx"), None, "CUDA") == "onnxruntime"


@pytest.mark.parametrize(
    ("asked", "device", "target", "engine"),
    [
        (None, "CPU", "onnxruntime", "onnxruntime"),
        (None, "GPU", "openvino", "openvino"),
        (None, "CUDA", "openvino", "onnxruntime"),
        (None, "NPU", "onnxruntime", "openvino"),
        ("openvino", "CPU", "onnxruntime", "openvino"),
        ("onnxruntime", "CPU", "openvino", "onnxruntime"),
    ],
)
def test_a_draft_has_its_own_engine(asked: Any, device: str, target: Any, engine: str) -> None:
    assert engine_choice.of_draft(asked, device, target) == engine


class Value:
    """An OrtValue in memory of a device, that of the CPU here."""

    def __init__(self, array: Any, memory: str) -> None:
        self.array, self.memory = array.copy(), memory

    def numpy(self) -> Any:
        return self.array

    def shape(self) -> list[int]:
        return list(self.array.shape)

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data)


def test_a_cache_in_a_devices_memory_keeps_its_rows_as_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    import edgespec.backends.onnx.bound_cache as module

    class Values:
        @staticmethod
        def ortvalue_from_numpy(array: Any, memory: str, index: int) -> Value:
            return Value(array, memory)

    class Binding:
        def __init__(self) -> None:
            self.bound: dict[str, tuple[Any, ...]] = {}

        def bind_input(self, name: str, *place: Any) -> None:
            self.bound[name] = place

        bind_output = bind_input

    monkeypatch.setattr(module, "OrtValue", Values)
    binding, name = Binding(), "past_key_values.0.key"
    cache = BoundCache(
        type("Session", (), {"get_inputs": lambda self: []})(), binding, 2000, {name: (2, 4)}, memory="cuda"
    )
    cache.reserve(10)
    held = cache._values[name].array
    held[...] = np.arange(held.size).reshape(held.shape)
    cache.append([1] * 7)
    cache.reserve(cache.rows + 1)
    grown = cache._values[name]
    assert grown.memory == "cuda" and np.array_equal(grown.array[:, :, :7], held[:, :, :7])
    assert binding.bound[name] == binding.bound["present.0.key"]
    assert binding.bound[name][0] == "cuda" and binding.bound[name][-1] == grown.data_ptr()
    assert cache.nbytes == grown.array.nbytes and not cache.repeat(100)
    assert not cache.can_copy, "a saved prefix would have no rows, and would be taken for one that has"


@pytest.mark.skipif(not HAS_OPENVINO, reason="needs onnxruntime-openvino")
def test_the_openvino_provider_runs_the_form(tiny_fast_ir: Path) -> None:
    cpu = load_onnx(tiny_fast_ir, "fast")
    model = OnnxRuntimeModel(cpu.folder, "fast", capacity=512, device="OPENVINO")
    assert model.capabilities.device == "OPENVINO" and model.fingerprint != cpu.fingerprint
    text = [(7 * i + i * i) % 50 for i in range(40)]
    model.prefill(text)
    model.forward([41, 42, 43])
    model.cache.crop(len(text))
    assert close(model, model.forward([8]).logits[0], fresh_logits(cpu, [*text, 8]))
