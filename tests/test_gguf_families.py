"""Each family of models that a GGUF file may hold is the function of the original, on each engine that takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec.backends.onnx.form import open_form
from edgespec.backends.onnx.graph import write_onnx
from edgespec.backends.onnx.session import OnnxRuntimeModel
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.backends.openvino.runtime import ops, ov
from edgespec.backends.openvino.settings import Settings
from edgespec.errors import BackendError, ConversionError
from edgespec.gguf.convert import read_header
from edgespec.machine import engine_choice
from edgespec.machine.engine_comparison import Comparison
from edgespec.protocols import Model
from tests import tiny_gguf, tiny_models
from tests.test_gguf_graph import converted, made, paged, stateful
from tests.test_gguf_rotary import expected_of, ids_of

LENGTH, WINDOW = 100, 24
CHUNKS = ((0, 40), (40, 41), (41, 44), (44, LENGTH))


def assert_is(model: Model, ids: NDArray[np.int64], expected: NDArray[np.float32]) -> None:
    """Read in parts of all sizes, and again behind a crop."""
    rows = [model.forward(ids[a:b].tolist()).logits.copy() for a, b in CHUNKS]
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=3e-3)
    model.cache.crop(70)
    np.testing.assert_allclose(model.forward(ids[70:].tolist()).logits, expected[70:], atol=3e-3)


@pytest.mark.parametrize(
    ("arch", "keys", "options"),
    [
        ("mistral", {"llama.attention.sliding_window": WINDOW}, {"sliding_window": WINDOW}),
        ("smollm3", {}, {"layers": 5, "no_rope_layer_interval": 4}),
        ("phi3", {}, {"sliding_window": WINDOW, "pad_token_id": 0}),
        ("phi3", {}, {"sliding_window": WINDOW, "pad_token_id": 0, "partial_rotary_factor": 0.5}),
        ("gemma2", {}, {"sliding_window": WINDOW, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 6.0}),
        ("gemma3_text", {}, {"sliding_window": WINDOW, "layers": 7}),
    ],
)  # fmt: skip
def test_the_function_is_the_originals(
    tmp_path: Path, arch: str, keys: dict[str, Any], options: dict[str, Any]
) -> None:
    pytest.importorskip("optimum.intel")
    built = tiny_models.build(arch, tmp_path / "hf", **options)
    ids = ids_of(LENGTH)
    expected = expected_of(built, ids)
    assert np.abs(expected).max() > 1
    xml = converted(tiny_models.write_gguf(built, tmp_path / "x.gguf", keys=keys))
    every = np.ones((1, LENGTH), np.int64)
    run = stateful(xml)
    steps = [run(ids[None, a:b], every[:, :b]) for a, b in CHUNKS]
    np.testing.assert_allclose(np.concatenate(steps, 1)[0], expected, atol=3e-3)
    if arch != "gemma2":
        assert_is(paged(xml, 256), ids, expected)
    write_onnx(xml, tmp_path, longest=256)
    for numerics in ("fast", "exact"):
        assert_is(OnnxRuntimeModel(tmp_path, numerics, capacity=256), ids, expected)


def test_capped_scores_run_on_the_engine_that_knows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2: OpenVINO refuses it, and without being asked the other engine is taken."""
    pytest.importorskip("optimum.intel")
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    built = tiny_models.build("gemma2", tmp_path / "hf")
    xml = converted(tiny_models.write_gguf(built, tmp_path / "x.gguf"))
    with pytest.raises(BackendError, match="a soft cap of 50 in 2 layers.* --backend onnxruntime"):
        paged(xml)

    def compare() -> Comparison:
        raise AssertionError("nothing is to be compared")

    assert engine_choice.faster(xml, None, compare) == "onnxruntime"
    model = open_form(xml, "fast", capacity=64, context_length=512, name="x", say=lambda line: None)
    ids = ids_of(40)
    np.testing.assert_allclose(model.forward(ids.tolist()).logits, expected_of(built, ids), atol=3e-3)


def test_an_engine_that_does_not_know_a_window_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release of OpenVINO may know windows by another form of the mask. It must not be wrong in silence."""
    monkeypatch.setattr(ops, "bitwise_and", ops.logical_and)
    xml = made(tmp_path / "tiny", extra={"llama.attention.sliding_window": 16})
    with pytest.raises(BackendError, match="does not know the windows .*got 0 of 2 windows"):
        paged(xml)


@pytest.mark.parametrize(("window", "trees"), [(16, False), (256, True)])
def test_no_trees_in_a_window(tmp_path: Path, window: int, trees: bool) -> None:
    """The engine counts the rows of other branches, and ancestors fall out of the window: not seen, not refused."""
    xml = made(tmp_path / "tiny", extra={"llama.attention.sliding_window": window})
    model = OpenVINOPagedModel(ov.Core(), xml, "CPU", Settings.of_draft("CPU"), capacity=64)
    assert model.capabilities.tree is trees


def test_a_window_as_long_as_the_context_is_none(tmp_path: Path) -> None:
    xml = made(tmp_path / "tiny", extra={"llama.attention.sliding_window": 256})
    assert "BitwiseAnd" not in {node.get_type_name() for node in ov.Core().read_model(xml).get_ordered_ops()}


@pytest.mark.parametrize(
    ("arch", "extra", "said"),
    [
        (
            "qwen2",
            {"attention.sliding_window": 16},
            "sliding_window .* window; got uint32 16; allowed: 0, 256 and more",
        ),
        ("gemma2", {"attention.sliding_window_pattern": 2}, "sliding_window_pattern of tiny.gguf is not computed here"),
        ("gemma3", {}, "got no gemma3.attention.sliding_window"),
        ("gemma3", {"attention.sliding_window": 2**31}, "sliding_window of tiny.gguf; got 2147483648; allowed: 0 to"),
        (
            "gemma3",
            {"attention.sliding_window": 16, "final_logit_softcapping": -1.0},
            "softcapping of tiny.gguf; got -1",
        ),
        ("gemma3", {"attention.sliding_window": 16, "attn_logit_softcapping": 9.0}, "attention scores are capped"),
        ("phi3", {"rope.dimension_count": 7}, "do not fit each other"),
        ("phi3", {"rope.dimension_count": 32}, "do not fit each other"),
        (
            "phi3",
            {},
            "attn_q.weight of tiny.gguf is not computed here: queries, keys and values are one tensor in phi3",
        ),
        ("phi2", {}, "got phi2; allowed: llama, qwen2, qwen3, granite, smollm3, phi3, gemma2, gemma3"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path: Path, arch: str, extra: dict[str, Any], said: str) -> None:
    given = {f"{arch}.{key}": value for key, value in extra.items()}
    path = tiny_gguf.write(tmp_path / "tiny.gguf", arch=arch, extra=given)
    with pytest.raises(ConversionError, match=said):
        read_header(path)
