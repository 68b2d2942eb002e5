"""The second engine: what its graph is made of, and when it is chosen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgespec
from edgespec import machine
from edgespec.backends.onnx_check import check
from edgespec.backends.onnx_graph import MODEL_FILE, WEIGHTS_FILE, write_onnx
from edgespec.backends.onnx_runtime import OnnxRuntimeModel
from edgespec.backends.padded import PaddedModel
from edgespec.bundle import Bundle
from edgespec.engine import ops, ov
from edgespec.errors import BackendError, ConversionError, SettingError
from edgespec.machine import Machine
from edgespec.pipeline import Pipeline
from edgespec.types import Logits
from tests.conftest import load_ir, load_onnx
from tests.tiny_models import build, export_ir


def both(ir: Path, text: list[int]) -> tuple[Logits, Logits]:
    """OpenVINO's logits and ONNX Runtime's. A chunk at a time: positions behind the first must be right too."""
    found = []
    for model in (load_ir(ir, "fast"), load_onnx(ir, "fast")):
        rows = [model.forward(text[begin : begin + 8]).logits.copy() for begin in range(0, len(text), 8)]
        found.append(np.concatenate(rows))
    return found[0], found[1]


@pytest.mark.parametrize(
    ("arch", "weights", "off"),
    [
        ("llama", "f32", 5e-3),  # keys and values are in 16 bits there
        ("llama", "int4", 0.2),  # activations of compressed products are in 8 bits
        ("qwen2", "int8", 0.2),  # products with a bias
        ("qwen3", "f32", 5e-3),  # norms of queries and keys
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("phi3", "f32", 5e-3), ("mistral", "int8", 0.2)]),
    ],
)
def test_it_is_the_function_of_the_ir(tmp_path: Path, arch: str, weights: str, off: float) -> None:
    ir = export_ir(build(arch, tmp_path / "torch"), tmp_path / "ir", weights)
    theirs, ours = both(ir, [(7 * i + i * i) % 200 + 5 for i in range(48)])
    assert np.abs(theirs - ours).max() < off * np.abs(theirs).max()


def test_weights_are_taken_over_code_by_code(tiny_fast_ir: Path, tmp_path: Path) -> None:
    """With activations in full precision what is left is the 16-bit cache of the other."""
    import onnx

    write_onnx(tiny_fast_ir, tmp_path, rows=64)
    model = onnx.load(str(tmp_path / MODEL_FILE), load_external_data=False)
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == 2 * 4 + 1  # query, key and value are one, gate and up are one
    for node in products:
        [level] = [option for option in node.attribute if option.name == "accuracy_level"]
        level.i = 1
    onnx.save(model, str(tmp_path / MODEL_FILE))
    text = [(7 * i + i * i) % 200 + 5 for i in range(40)]
    theirs = load_ir(tiny_fast_ir, "exact").forward(text).logits.copy()
    ours = OnnxRuntimeModel(tmp_path, "fast", capacity=64).forward(text).logits
    assert np.abs(theirs - ours).max() < 1e-2 * np.abs(theirs).max()


def test_what_has_no_operator_is_refused_by_name(tiny_ir: Path, tmp_path: Path) -> None:
    model = ov.Core().read_model(tiny_ir)
    head = model.output("logits").get_node().input_value(0).get_node()
    capped = ops.tanh(head.input_value(0))
    capped.set_friendly_name("soft_cap")
    head.input(0).replace_source_output(capped.output(0))
    model.validate_nodes_and_infer_types()
    ov.save_model(model, tmp_path / "capped.xml", compress_to_fp16=False)
    with pytest.raises(ConversionError, match="got Tanh soft_cap"):
        write_onnx(tmp_path / "capped.xml", tmp_path / "made", rows=64)


def test_a_form_that_means_something_else_is_noticed(tiny_fast_ir: Path, tmp_path: Path) -> None:
    """Heads whose rotary embedding turns other pairs of numbers."""
    import onnx

    write_onnx(tiny_fast_ir, tmp_path, rows=64)
    theirs = load_ir(tiny_fast_ir, "fast")
    check(OnnxRuntimeModel(tmp_path, "fast", capacity=64), theirs)
    model = onnx.load(str(tmp_path / MODEL_FILE), load_external_data=False)
    for node in model.graph.node:
        for option in node.attribute:
            if option.name == "rotary_interleaved":
                option.i = 1
    onnx.save(model, str(tmp_path / MODEL_FILE))
    with pytest.raises(ConversionError, match="says something else"):
        check(OnnxRuntimeModel(tmp_path, "fast", capacity=64), theirs)


def test_a_damaged_file_is_an_error_that_says_what_to_do(tiny_fast_ir: Path, tmp_path: Path) -> None:
    write_onnx(tiny_fast_ir, tmp_path, rows=64)
    (tmp_path / WEIGHTS_FILE).write_bytes((tmp_path / WEIGHTS_FILE).read_bytes()[:100])
    with pytest.raises(BackendError, match="Delete that folder"):
        OnnxRuntimeModel(tmp_path, "fast", capacity=64)


def test_an_interrupted_growth_begins_again(tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = (load_onnx(tiny_fast_ir, capacity=1000) for _ in range(2))
    model.prefill([1] * 50)
    allocate, calls = model.cache._allocate, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return allocate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(model.cache, "_allocate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.prefill([1] * 600)
    assert model.prefill([1] * 900) == 0
    other.prefill([1] * 900)
    assert np.array_equal(model.forward([2]).logits, other.forward([2]).logits)
    assert model.cache.nbytes < 1.3 * 900 / model.cache.rows * model.cache.nbytes


def test_two_models_take_turns(tiny_fast_ir: Path) -> None:
    """Target and draft in one process, one of them started and not waited for."""
    left, right = (load_onnx(tiny_fast_ir) for _ in range(2))
    left.start([1, 2, 3])
    right.forward([4, 5])
    step = left.wait()
    assert np.array_equal(step.logits, right.forward([9]) and load_onnx(tiny_fast_ir).forward([1, 2, 3]).logits)


# Which engine


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_fast_ir: Path) -> dict[str, float]:
    """Seconds that each engine is made to take, in an empty cache."""
    seconds = {"openvino": 2.0, "onnxruntime": 1.0}

    def answer_s(model: PaddedModel) -> float:
        seconds["measured"] = seconds.get("measured", 0) + 1
        return seconds[model.capabilities.backend]

    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGESPEC_BACKEND")
    monkeypatch.setattr(machine, "_answer_s", answer_s)
    return seconds


def loaded(ir: Path, **options: Any) -> Pipeline:
    return edgespec.load(ir.parent, num_draft_tokens=0, **options)


def test_the_faster_one_is_chosen_and_remembered(engines: dict[str, float], tiny_fast_ir: Path) -> None:
    first = loaded(tiny_fast_ir)
    assert first.target.capabilities.backend == "onnxruntime"
    assert first.generate([1, 2, 3], max_new_tokens=2).as_dict()["backend"] == "onnxruntime"
    measured = engines["measured"]
    engines["openvino"] = 0.5
    assert loaded(tiny_fast_ir).target.capabilities.backend == "onnxruntime"
    assert engines["measured"] == measured
    assert loaded(tiny_fast_ir, numerics="fast").target.capabilities.backend == "openvino"  # measured anew
    assert loaded(tiny_fast_ir, backend="openvino").target.capabilities.backend == "openvino"


def test_the_environment_decides_before_the_measure(
    engines: dict[str, float], tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_BACKEND", "openvino")
    assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"
    assert loaded(tiny_fast_ir, backend="onnxruntime").target.capabilities.backend == "onnxruntime"
    monkeypatch.setenv("EDGESPEC_BACKEND", "llama")
    with pytest.raises(SettingError, match="got llama; allowed: openvino, onnxruntime"):
        loaded(tiny_fast_ir)
    assert "measured" not in engines


def test_a_model_without_an_onnx_form_stays_on_openvino(
    engines: dict[str, float], tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgespec.backends import onnx_graph

    def refuse(*arguments: Any, **options: Any) -> None:
        raise ConversionError("no", got="Tanh")

    monkeypatch.setattr(onnx_graph, "write_onnx", refuse)
    assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"
    with pytest.raises(ConversionError):
        loaded(tiny_fast_ir, backend="onnxruntime")
    assert not list((machine.cache.cache_dir() / "onnx").iterdir())


def test_without_the_extra_it_is_not_considered(
    engines: dict[str, float], tiny_fast_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert loaded(tiny_fast_ir).target.capabilities.backend == "openvino"
    with pytest.raises(SettingError, match="ip install 'edgespec\\[onnx\\]'"):
        loaded(tiny_fast_ir, backend="onnxruntime")


def test_it_runs_on_cpu_only() -> None:
    bundle: Bundle = None  # type: ignore[assignment]
    with pytest.raises(SettingError, match="runs on CPU only"):
        Machine(16, False).backend(bundle, "GPU", None, "onnxruntime")
    assert Machine(16, False).backend(bundle, "GPU", None, "openvino") == "openvino"


def test_a_form_half_written_is_none(engines: dict[str, float], tiny_fast_ir: Path, tmp_path: Path) -> None:
    """What a killed process left behind is made anew."""
    loaded(tiny_fast_ir, backend="onnxruntime")
    [folder] = (tmp_path / "cache" / "onnx").iterdir()
    shutil.move(str(folder), folder.with_name(folder.name + ".partial"))
    assert loaded(tiny_fast_ir, backend="onnxruntime").generate([1, 2], max_new_tokens=2).token_ids
    assert [path.name for path in (tmp_path / "cache" / "onnx").iterdir()] == [folder.name]
