"""The NPU without one: what is refused, and, slowly, its plugin on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgespec
from edgespec.backends.layer_states import NoSuchLayer
from edgespec.backends.openvino.npu import OpenVINONPUModel, open_npu, require_graph
from edgespec.backends.openvino.npu_graph import read_for_npu
from edgespec.backends.openvino.npu_settings import MOST_ROWS, Windows
from edgespec.backends.openvino.runtime import core, ops, ov
from edgespec.backends.openvino.static_graph import OpenVINOStaticGraph
from edgespec.decode.autoregressive import autoregressive
from edgespec.decode.policy import FixedLength
from edgespec.decode.speculative import speculative
from edgespec.drafters.small_model import SmallModel
from edgespec.errors import BackendError, DeviceError, SettingError
from edgespec.gguf.convert import convert, read_header
from edgespec.machine import devices
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from tests import tiny_gguf
from tests.conftest import load_ir, load_npu
from tests.contract import close, fresh_logits
from tests.test_static_graph import head, opened, write

OPTIONS: dict[str, Any] = {
    "numerics": None,
    "capacity": 512,
    "is_draft": False,
    "say": lambda text: None,
    "layers": (),
}
TEXT = [(7 * i + i * i) % 50 for i in range(400)]


def test_without_an_npu_it_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGESPEC_NPU_ON_CPU", raising=False)
    if "NPU" in core().available_devices:
        pytest.skip("this machine has one")
    with pytest.raises(DeviceError, match=r"no such device here; got NPU; allowed: .*CPU.*doctor"):
        devices.require_device("NPU")
    monkeypatch.setenv("EDGESPEC_NPU_ON_CPU", "1")
    assert devices.require_device("NPU") == "NPU"
    assert [device.name for device in devices.devices()].count("NPU") == 1


@pytest.mark.parametrize(
    ("version", "is_old"), [(1_700_000_000, True), (1_738_334_590, False), (3104, False), (None, False)]
)
def test_a_driver_that_is_too_old_is_refused(
    version: int | None, is_old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGESPEC_NPU_ON_CPU", raising=False)
    known = devices._property

    def told(device: str, name: str) -> Any:
        return version if name == "NPU_DRIVER_VERSION" else known(device, name)

    monkeypatch.setattr(devices, "_property", told)
    monkeypatch.setattr(type(core()), "available_devices", ["CPU", "NPU"])
    if is_old:
        with pytest.raises(DeviceError, match=r"driver of the NPU is too old; got 1700000000; allowed: 17298"):
            devices.require_device("NPU")
    else:
        assert devices.require_device("NPU") == "NPU"


def weights_of(kind: str, shape: tuple[int, ...], zero_points: bool) -> ov.Model:
    x = ops.parameter([1, 256], np.float32, name="x")
    integers = ops.constant(np.ones(shape, np.int8 if kind[0] == "i" else np.uint8), getattr(ov.Type, kind))
    value = ops.convert(integers, np.float32)
    if zero_points:
        value = ops.subtract(value, ops.constant(np.float32(8)))
    value = ops.reshape(ops.multiply(value, ops.constant(np.float32(0.1))), [8, 256], special_zero=False)
    return ov.Model([ops.result(ops.matmul(x, value, False, True))], [x], "weights")


@pytest.mark.parametrize(
    ("kind", "shape", "zero_points", "wrong"),
    [
        ("i4", (8, 2, 128), False, None),
        ("i4", (8, 256), False, None),
        ("i8", (8, 256), True, None),
        ("i4", (8, 8, 32), False, "a step for 32"),
        ("u4", (8, 2, 128), True, "zero points"),
    ],
)
def test_weights_that_end_the_compilers_process_are_refused_before(
    kind: str, shape: tuple[int, ...], zero_points: bool, wrong: str | None
) -> None:
    graph, xml = weights_of(kind, shape, zero_points), Path("pair/target/openvino_model.xml")
    if wrong is None:
        require_graph(graph, xml)
        return
    with pytest.raises(
        DeviceError, match=rf"does not take the weights of pair.*got 4-bit weights with {wrong}.*export"
    ):
        require_graph(graph, xml)


def test_it_returns_no_hidden_states_and_is_not_exact(tiny_ir: Path, tmp_path: Path) -> None:
    said: list[str] = []
    options: dict[str, Any] = {"capacity": 512, "is_draft": False, "say": said.append}
    xml = tiny_ir if tiny_ir.suffix == ".xml" else tiny_ir / "openvino_model.xml"
    with pytest.raises(NoSuchLayer, match=r"no hidden states; got layers \[1\]"):
        open_npu(core(), xml, "NPU", numerics=None, layers=(1,), **options)
    with pytest.raises(SettingError, match="exact is only known to hold on CPU"):
        open_npu(core(), xml, "NPU", numerics="exact", layers=(), **options)


@pytest.mark.parametrize("capacity", [1, 336, 700, 1 << 20])
def test_windows_have_room_for_the_pads_of_a_last_forward(capacity: int) -> None:
    windows = Windows.of(capacity)
    assert min(capacity, MOST_ROWS) <= windows.prompt <= MOST_ROWS and windows.prompt % windows.chunk == 0
    assert windows.prompt >= 2 * windows.chunk and windows.past >= windows.prompt + 64


@pytest.fixture(scope="module")
def gguf_ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a GGUF file: it names its states otherwise than exports do. It repeats heads otherwise, too, as files did that
    were converted before. Nine layers, because three of these run even so."""
    folder = tmp_path_factory.mktemp("gguf")
    convert(read_header(tiny_gguf.write(folder / "tiny.gguf", layers=9)), folder, name="tiny", source="tiny")
    xml = folder / "openvino_model.xml"
    xml.write_text(xml.read_text(encoding="utf-8").replace('mode="bidirectional"', 'mode="numpy"'), encoding="utf-8")
    return xml


def states_of(graph: ov.Model) -> list[str]:
    return sorted(variable.get_info().variable_id for variable in graph.get_variables())


def test_states_get_the_names_that_the_plugin_knows(gguf_ir: Path, tiny_ir: Path) -> None:
    def known(layers: int) -> list[str]:
        return [f"past_key_values.{n}.{of}present.{n}.{of}" for n in range(layers) for of in ("key", "value")]

    assert states_of(core().read_model(gguf_ir)) != known(9)
    assert states_of(read_for_npu(core(), gguf_ir)) == known(9) and states_of(read_for_npu(core(), tiny_ir)) == known(2)


def test_only_a_broadcast_that_repeats_heads_gets_both_directions(tmp_path: Path) -> None:
    heads, shape = ops.parameter([1, 2, 1, 3, 4], np.float32), ops.parameter([-1], np.int64)
    five = ops.constant(np.array([1, 2, 5, 3, 4]))
    made = {
        "bidirectional": ops.broadcast(heads, five),
        "explicit": ops.broadcast(ops.constant(np.ones(3, np.float32)), five, ops.constant([3]), "EXPLICIT"),
        "numpy": ops.broadcast(heads, shape),  # of a rank that is not known
    }
    graph = ov.Model([ops.result(node) for node in made.values()], [heads, shape], "broadcasts")
    ov.save_model(graph, tmp_path / "openvino_model.xml", compress_to_fp16=False)
    read = read_for_npu(core(), tmp_path / "openvino_model.xml")
    assert [result.input_value(0).get_node().get_attributes()["mode"] for result in read.get_results()] == [*made]


@pytest.fixture(scope="module")
def on_cpu() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESPEC_NPU_ON_CPU", "1")
        yield


@pytest.fixture(scope="module")
def model(on_cpu: None, tiny_ir: Path) -> OpenVINONPUModel:
    return load_npu(tiny_ir, capacity=512)


@pytest.mark.slow
def test_a_long_prompt_is_read_in_chunks_and_a_longer_one_goes_on(model: OpenVINONPUModel, tiny_ir: Path) -> None:
    full, forwards = load_ir(tiny_ir), []
    told = model._give

    def give(tokens: Any, past: int, mask: Any) -> None:
        forwards.append((past, len(tokens)))
        told(tokens, past, mask)

    model._give = give  # type: ignore[method-assign]
    model.cache.reset()
    assert model.prefill(TEXT[:200]) == 0 and forwards == [(0, 200)]
    forwards.clear()
    assert model.continues and model.prefill(TEXT[:390]) == 200
    assert forwards == [(200, 1), (192, 198)]  # a forward hands the rows over; three whole chunks are kept
    forwards.clear()
    assert model.prefill([*TEXT[:100], 9]) == 100
    assert forwards == [(390, 1), (100, 8)]  # a few tokens are read in forwards
    step = model.forward([8])
    assert close(model, step.logits[0], fresh_logits(full, [*TEXT[:100], 9, 8]))


@pytest.mark.slow
def test_a_converted_file_runs_right_in_a_process_of_its_own(
    on_cpu: None, gguf_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    full = load_ir(gguf_ir)
    model = open_npu(core(), gguf_ir, "NPU", **OPTIONS)
    model.prefill(TEXT[:60])
    for rows in ([7], [8, 9, 10]):
        step = model.forward(rows)
        assert close(model, step.logits[0], fresh_logits(full, [*TEXT[:60], rows[0]]))
        model.cache.crop(60)


@pytest.mark.slow
def test_a_model_that_the_plugin_runs_wrong_is_refused(
    on_cpu: None, tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    graph = core().read_model(tiny_ir)
    for number, variable in enumerate(graph.get_variables()):
        info = variable.get_info()
        info.variable_id = f"state.{number}"
        variable.update(info)
    xml = tmp_path / "openvino_model.xml"
    ov.save_model(graph, xml, compress_to_fp16=False)
    with pytest.raises(BackendError, match="right: a forward disagrees with a prompt; got correlation"):
        open_npu(core(), xml, "NPU", **OPTIONS)


@pytest.mark.slow
@pytest.mark.real
def test_the_default_model_writes_what_it_writes_on_cpu(on_cpu: None) -> None:
    """Of the pair the target alone, with lookups: its draft has its own test."""
    there = edgespec.load(device="NPU", draft="ngram", context_length=512)
    here = edgespec.load(device="CPU", draft="none", numerics="fast", context_length=512)
    text = "The lighthouse had stood on the headland for"
    found, plain = (pair.generate(pair.tokenizer.encode(text), max_new_tokens=24) for pair in (there, here))
    assert found.token_ids[:12] == plain.token_ids[:12]


@pytest.mark.slow
def test_a_long_window_has_one_mask(on_cpu: None, tiny_fast_ir: Path) -> None:
    """By default the plugin makes graphs of several lengths of it, and the first has a shorter mask."""
    model = load_npu(tiny_fast_ir, capacity=2048)
    model.prefill(TEXT[:20])
    early = model.forward([8]).logits[0].copy()
    model.prefill((TEXT * 4)[:1500])
    model.prefill(TEXT[:20])
    assert close(model, model.forward([8]).logits[0], early)


@pytest.mark.slow
def test_what_was_rejected_is_not_read_again(model: OpenVINONPUModel, tiny_ir: Path) -> None:
    """Rows that a longer forward wrote behind this one's are masked."""
    full = load_ir(tiny_ir)
    model.cache.reset()
    model.prefill(TEXT[:150])
    for wrong in ([41, 42, 43, 44, 45, 46, 47], [44, 45, 46]):
        model.forward(wrong)
        model.cache.crop(150)
        assert close(model, model.forward([8]).logits[0], fresh_logits(full, [*TEXT[:150], 8]))
        model.cache.crop(150)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_draft_changes_no_token(model: OpenVINONPUModel, tiny_ir: Path, temperature: float) -> None:
    """As target and as draft. The draft is the target on CPU, and on the NPU: of both, tokens are accepted."""
    sampling = SamplingParams(temperature=temperature, seed=7)
    prompt, length = TEXT[:90], 40
    plain = list(prompt)
    model.cache.reset()
    for _ in autoregressive(model, plain, sampling, stop=(), budget=length):
        pass
    for draft in (load_ir(tiny_ir, is_draft=True), load_npu(tiny_ir, capacity=512)):
        drafter, text, stats = SmallModel(draft, model.vocab_size, name="itself"), list(prompt), Stats()
        model.cache.reset()
        policy = FixedLength(drafter, 4)
        for _ in speculative(model, policy, text, sampling, stop=(), budget=length, stats=stats):
            pass
        assert text == plain and stats.accepted > length / 2


@pytest.mark.slow
def test_a_device_that_is_lost_ends_one_text_and_not_the_next(model: OpenVINONPUModel, tiny_ir: Path) -> None:
    full = load_ir(tiny_ir)
    model.cache.reset()
    model.prefill(TEXT[:60])
    request = model._request

    class Lost:
        def __getattr__(self, name: str) -> Any:
            return getattr(request, name)

        def infer(self, **_: Any) -> None:
            raise RuntimeError("ZE_RESULT_ERROR_DEVICE_LOST")

    lost: Any = Lost()
    model._request = lost
    with pytest.raises(BackendError, match="inference failed: ZE_RESULT_ERROR_DEVICE_LOST"):
        model.forward([1, 2])
    model._request = request
    assert model.cache.length == 0
    model.prefill(TEXT[:70])
    assert close(model, model.forward([8]).logits[0], fresh_logits(full, [*TEXT[:70], 8]))


@pytest.mark.slow
def test_a_head_is_one_call_there(on_cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "head").mkdir()
    on_npu = OpenVINOStaticGraph(ov.Core(), write(head(), tmp_path / "head"), "NPU")
    inputs = {"state": np.ones((2, 4), np.float32), "token": np.array([3], np.int32)}
    expected = {name: array.copy() for name, array in opened(head(), tmp_path).run(inputs).items()}
    found = on_npu.run(inputs)
    assert found["after"] == expected["after"] and np.allclose(found["logits"], expected["logits"], atol=2e-2)
    assert on_npu.device == "NPU"
