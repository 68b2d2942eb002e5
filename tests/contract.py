"""Every backend on a tiny model, and what a fresh forward of a text gives: for the tests of the contract."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edgespec.backends.exact_widths import ExactWidths, find_exact_widths
from edgespec.backends.fake import FakeModel, random_table
from edgespec.backends.onnx.ready import ReadyModel
from edgespec.backends.onnx.session import SessionModel
from edgespec.backends.openvino.npu import OpenVINONPUModel
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.backends.openvino.stateful_model import OpenVINOStatefulModel
from edgespec.protocols import Model
from edgespec.types import Logits, Numerics
from tests.conftest import load_ir, load_npu, load_onnx, load_stateful

CAPACITY = 700
Make = Callable[..., Model]
"""Its argument: the layers whose hidden states the model returns."""
LAYERS = (0, 1, 2)
"""of the tiny models: embeddings, behind the first layer, what goes into the output head"""


@pytest.fixture(
    params=[
        *("fake", "paged-exact", "paged-exact-5-to-32", "paged-fast", "onnx-exact", "onnx-fast", "onnx-int4-exact"),
        *("ready-genai-exact", "ready-optimum-fast"),
        *("stateful", "stateful-rewriting", "stateful-cut"),
        pytest.param("npu", marks=pytest.mark.slow),
    ]
)
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "fake":
        table = random_table(50, seed=1, order=1000)  # sensitive to the whole text
        return lambda layers=(): FakeModel(table, 50, capacity=CAPACITY, layers=layers)
    if request.param == "npu":
        request.getfixturevalue("npu_on_cpu")
        return partial(on_npu, request.getfixturevalue("tiny_ir"))
    if request.param == "paged-fast":
        fast_ir: Path = request.getfixturevalue("tiny_fast_ir")
        return lambda layers=(): by_channel(load_ir(fast_ir, "fast", capacity=CAPACITY, layers=layers))
    if request.param == "onnx-int4-exact":
        int4_ir: Path = request.getfixturevalue("tiny_int4_ir")
        return lambda layers=(): load_onnx(int4_ir, capacity=CAPACITY, layers=layers)
    if request.param.startswith("onnx"):
        int8_ir: Path = request.getfixturevalue("tiny_fast_ir")
        return lambda layers=(): load_onnx(
            int8_ir, request.param.removeprefix("onnx-"), capacity=CAPACITY, layers=layers
        )
    if request.param.startswith("ready"):
        _, kind, numerics = request.param.split("-")
        return lambda layers=(): ready(request.getfixturevalue(f"tiny_{kind}"), numerics, layers)
    ir: Path = request.getfixturevalue("tiny_ir")
    if request.param.startswith("stateful"):
        kind = request.param.removeprefix("stateful").removeprefix("-")
        return lambda layers=(): stateful(ir, kind, layers)
    if request.param == "paged-exact-5-to-32":
        return lambda layers=(): narrowed(load_ir(ir, capacity=CAPACITY, layers=layers))
    return lambda layers=(): load_ir(ir, capacity=CAPACITY, layers=layers)


def on_npu(ir: Path, layers: tuple[int, ...] = ()) -> OpenVINONPUModel:
    if layers:
        pytest.skip("an NPU returns no hidden states")
    return load_npu(ir, capacity=CAPACITY)


def by_channel(model: OpenVINOPagedModel) -> OpenVINOPagedModel:
    """The 8-bit keys of fast numerics: their rows share scales and cannot move."""
    assert not model.cache.rows_can_move and not model.capabilities.tree
    return model


def ready(path: Path, numerics: Numerics, layers: tuple[int, ...]) -> ReadyModel:
    """A ready ONNX model, as another tool exported it."""
    model = ReadyModel(path, numerics, capacity=CAPACITY, layers=layers)
    if numerics == "exact":
        model.set_exact_widths(find_exact_widths(model))
    return model


def stateful(ir: Path, kind: str, layers: tuple[int, ...]) -> OpenVINOStatefulModel:
    """rewriting: as soon as a quarter of its rows went. cut: by the engine, as where attention has a window."""
    model = load_stateful(ir, capacity=CAPACITY, layers=layers, masked=kind != "cut")
    assert model.cache.masked == model.capabilities.tree == (kind != "cut")
    if kind == "rewriting":
        model.cache.most_waste = 0
    return model


def narrowed(model: OpenVINOPagedModel) -> OpenVINOPagedModel:
    """As on a machine where one function begins at five rows and ends at 32."""
    model.set_exact_widths(ExactWidths(5, 32))
    return model


def fresh_logits(model: Model, text: list[int]) -> Logits:
    model.cache.reset()
    model.prefill(text[:-1])
    return model.forward(text[-1:]).logits[0].copy()


def close(model: Model, left: Logits, right: Logits) -> bool:
    if model.capabilities.numerics == "exact":
        return bool(np.array_equal(left, right))
    return bool(np.abs(left - right).max() < 0.1 * np.abs(right).max() if left.size else True)


def takes_trees(model: Model) -> bool:
    if isinstance(model, OpenVINOPagedModel):
        return model.cache.rows_can_move
    return isinstance(model, FakeModel) or (isinstance(model, OpenVINOStatefulModel) and model.cache.masked)


def skip_without_masks(model: Model) -> None:
    if isinstance(model, SessionModel | OpenVINONPUModel):
        pytest.skip("attention on ONNX Runtime and on NPUs is given chains only")
    if isinstance(model, OpenVINOStatefulModel) and not model.cache.masked:
        pytest.skip("the graph's own masks know chains only")
