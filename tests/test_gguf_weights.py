"""After requantize the IR's weights are the GGUF file's, by OpenVINO's own arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec import gguf
from edgespec.backends.openvino_settings import FULL_PRECISION, Settings
from edgespec.errors import ConversionError
from edgespec.gguf_weights import requantize
from tests import tiny_gguf


def made(folder: Path, **options: Any) -> tuple[Path, Path]:
    """A GGUF file and the IR of it, a product for each of its matrices."""
    source = tiny_gguf.write(folder / "tiny.gguf", **options)
    (folder / "ir").mkdir()
    gguf.convert(gguf.read_header(source), folder / "ir", name="tiny", source="tiny", merge=False)
    return folder / "ir" / "openvino_model.xml", source


def weights(xml: Path) -> dict[str, tuple[str, NDArray[np.float32]]]:
    """By the name of the node that uses it: name of its first constant, and the folded matrix."""
    import openvino as ov
    from openvino import opset13 as ops

    core = ov.Core()
    found = {}
    for node in core.read_model(xml).get_ordered_ops():
        kind = node.get_type_name()
        if kind in ("MatMul", "Gather"):
            source = node.input_value(1 if kind == "MatMul" else 0)
            first = source.get_node()
            while first.get_input_size():
                first = first.input_value(0).get_node()
            if first.get_type_name() == "Constant" and len(source.get_partial_shape()) == 2:
                graph = ov.Model([ops.result(source)], [])
                folded = core.compile_model(graph, "CPU", FULL_PRECISION)([])[0]
                found[node.get_friendly_name()] = (first.get_friendly_name(), folded.astype(np.float32))
    return found


def stored(path: Path) -> dict[str, NDArray[np.float32]]:
    import gguf as package

    return {t.name: package.quants.dequantize(t.data, t.tensor_type) for t in package.GGUFReader(path).tensors}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("quantize", "hidden"), [("Q4_1", 64), ("Q4_K", 256)])
def test_faithful_weights_are_the_files_to_half_precision(
    tmp_path: Path, quantize: str, hidden: int, tied: bool
) -> None:
    xml, source = made(tmp_path, quantize=quantize, hidden=hidden, tied=tied)
    size = xml.with_suffix(".bin").stat().st_size
    assert requantize(xml, source, "faithful", merge=False) == gguf.read_header(source).precision
    assert xml.with_suffix(".bin").stat().st_size < 1.1 * size

    expected, seen = stored(source), set()
    for name, weight in weights(xml).values():
        values = expected[name]
        if "attn_q" in name or "attn_k" in name:  # GGUF: 0 8 1 9 ..., the graph: 0 1 2 ... within a head
            head = hidden // 4
            values = np.concatenate([half for h in np.split(values, len(values) // head) for half in (h[::2], h[1::2])])
        blocks, folded = values.reshape(-1, 32), weight.reshape(-1, 32)
        allowed = 2**-10 * (np.abs(blocks).max(1) + np.ptp(blocks, 1)) + 1e-7
        assert (np.abs(folded - blocks).max(1) <= allowed).all(), name
        seen.add(name)
    assert seen == {name for name, values in expected.items() if values.ndim == 2}


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("quantize", ["F16", "Q4_0", "Q8_0"])
def test_int8_is_within_half_a_step_in_the_same_place(tmp_path: Path, quantize: str, tied: bool) -> None:
    """GenAI reads these types without loss."""
    xml, source = made(tmp_path, quantize=quantize, tied=tied)
    before = weights(xml)
    assert requantize(xml, source, "int8", merge=False) == "int8"
    after = weights(xml)
    assert before.keys() == after.keys()
    assert len(after) == 2 * 7 + 2
    for user, (_, exact) in before.items():
        step = (exact.max(1, keepdims=True, initial=0) - exact.min(1, keepdims=True, initial=0)) / 255
        close = 0.5 * step * (1 + 2**-9) + 2**-10 * np.abs(exact)
        assert (np.abs(after[user][1] - exact) <= close).all(), after[user][0]


def test_tied_weights_stay_one(tmp_path: Path) -> None:
    sizes = []
    for tied in (True, False):
        (folder := tmp_path / str(tied)).mkdir()
        xml, source = made(folder, quantize="Q4_1", tied=tied)
        requantize(xml, source, "int8", merge=False)
        sizes.append(xml.with_suffix(".bin").stat().st_size)
    assert sizes[1] - sizes[0] == pytest.approx(len(tiny_gguf.vocabulary()[0]) * (64 + 3), abs=512)


def test_faithful_leaves_a_lossless_ir_alone(tmp_path: Path) -> None:
    xml, source = made(tmp_path, quantize="Q4_0")
    before = xml.stat().st_mtime_ns
    assert requantize(xml, source, "faithful", merge=False) == "q4_0"
    assert xml.stat().st_mtime_ns == before


def test_the_changed_model_runs_paged(tmp_path: Path) -> None:
    import openvino as ov

    from edgespec.backends.openvino_paged import OpenVINOPagedModel

    core, logits = ov.Core(), []
    for kind in ("faithful", "int8"):
        (folder := tmp_path / kind).mkdir()
        xml, source = made(folder, quantize="Q4_1")
        requantize(xml, source, kind)
        model = OpenVINOPagedModel(core, xml, "CPU", Settings.make("CPU", None), capacity=64)
        logits.append(model.forward([5, 6, 7, 8]).logits.copy())
    assert np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1] > 0.999


def test_another_files_ir_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    xml, _ = made(tmp_path, quantize="Q4_1")
    before = {path.name: path.read_bytes() for path in xml.parent.iterdir()}
    (tmp_path / "other").mkdir()
    other = tiny_gguf.write(tmp_path / "other" / "tiny.gguf", quantize="Q4_1", hidden=96)
    with pytest.raises(ConversionError, match="not made from this GGUF file"):
        requantize(xml, other, "int8")
    assert {path.name: path.read_bytes() for path in xml.parent.iterdir()} == before
