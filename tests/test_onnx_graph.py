"""A model's ONNX form is the function of its IR; what has no form is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.backends.onnx.check import TOKENS, check
from edgespec.backends.onnx.graph import MODEL_FILE, write_onnx
from edgespec.backends.onnx.session import OnnxRuntimeModel
from edgespec.backends.onnx.weights import NoONNXForm
from edgespec.backends.openvino.runtime import ops, ov
from edgespec.errors import ConversionError
from edgespec.types import Logits
from tests.conftest import load_ir, load_onnx
from tests.tiny_models import build, export_ir


def both(ir: Path, text: list[int]) -> tuple[Logits, Logits]:
    """OpenVINO's logits in full precision, and ONNX Runtime's. A chunk at a time: positions behind the first must be
    right too."""
    found = []
    for model in (load_ir(ir, full_precision=True), load_onnx(ir, "fast")):
        rows = [model.forward(text[begin : begin + 8]).logits.copy() for begin in range(0, len(text), 8)]
        found.append(np.concatenate(rows))
    return found[0], found[1]


@pytest.mark.parametrize(
    ("arch", "weights", "off"),
    [
        ("llama", "f32", 1e-4),  # all in f32 on both sides
        ("llama", "int4", 0.2),  # activations of compressed products are in 8 bits here
        ("qwen2", "int8", 0.2),  # products with a bias
        ("qwen3", "f32", 1e-4),  # norms of queries and keys
        pytest.param("phi3", "f32", 1e-4, marks=pytest.mark.slow),
    ],
)
def test_it_is_the_function_of_the_ir(tmp_path: Path, arch: str, weights: str, off: float) -> None:
    ir = export_ir(build(arch, tmp_path / "torch"), tmp_path / "ir", weights)
    theirs, ours = both(ir, [(7 * i + i * i) % 200 + 5 for i in range(48)])
    assert np.abs(theirs - ours).max() < off * np.abs(theirs).max()


@pytest.mark.cpu
def test_weights_are_taken_over_code_by_code(tiny_fast_ir: Path, tmp_path: Path) -> None:
    """In full precision on both sides nothing is left but the order of sums."""
    import onnx

    write_onnx(tiny_fast_ir, tmp_path, longest=64)
    model = onnx.load(str(tmp_path / MODEL_FILE), load_external_data=False)
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == 2 * 4 + 1  # query, key and value are one, gate and up are one
    for node in products:
        [level] = [option for option in node.attribute if option.name == "accuracy_level"]
        level.i = 1
    onnx.save(model, str(tmp_path / MODEL_FILE))
    text = [(7 * i + i * i) % 200 + 5 for i in range(40)]
    theirs = load_ir(tiny_fast_ir, full_precision=True).forward(text).logits.copy()
    ours = OnnxRuntimeModel(tmp_path, "fast", capacity=64).forward(text).logits
    assert np.abs(theirs - ours).max() < 1e-4 * np.abs(theirs).max()


def test_what_has_no_operator_is_refused_by_name(tiny_ir: Path, tmp_path: Path) -> None:
    model = ov.Core().read_model(tiny_ir)
    head = model.output("logits").get_node().input_value(0).get_node()
    rounded = ops.ceiling(head.input_value(0))
    rounded.set_friendly_name("rounded_up")
    head.input(0).replace_source_output(rounded.output(0))
    model.validate_nodes_and_infer_types()
    ov.save_model(model, tmp_path / "rounded.xml", compress_to_fp16=False)
    with pytest.raises(ConversionError, match="got Ceiling rounded_up"):
        write_onnx(tmp_path / "rounded.xml", tmp_path / "made", longest=64)


def test_a_swish_keeps_its_slope(tiny_ir: Path, tmp_path: Path) -> None:
    model = ov.Core().read_model(tiny_ir)
    swishes = [node for node in model.get_ordered_ops() if node.get_type_name() == "Swish"]
    assert swishes
    for swish in swishes:
        steeper = ops.swish(swish.input_value(0), np.float32(3.0))
        swish.output(0).replace(steeper.output(0))
    model.validate_nodes_and_infer_types()
    ov.save_model(model, tmp_path / "steeper.xml", compress_to_fp16=False)
    write_onnx(tmp_path / "steeper.xml", tmp_path, longest=128)
    theirs = load_ir(tmp_path / "steeper.xml", full_precision=True)
    check(tmp_path, theirs)
    theirs.cache.reset()
    ours = OnnxRuntimeModel(tmp_path, "exact", capacity=64).forward([5, 6, 7]).logits
    assert np.abs(ours - theirs.forward([5, 6, 7]).logits).max() < 1e-4 * np.abs(ours).max()


@pytest.mark.slow
def test_a_window_over_what_is_attended_to_is_taken_over(tmp_path: Path) -> None:
    """Of Mistral, and with none it is a Llama. The check's text is longer than the window."""
    for window in (TOKENS // 3, None):
        ir = export_ir(build("mistral", tmp_path / f"torch{window}", sliding_window=window), tmp_path / f"ir{window}")
        write_onnx(ir, tmp_path / f"made{window}", longest=128)
        check(tmp_path / f"made{window}", load_ir(ir, full_precision=True))


@pytest.mark.parametrize("change", ["interleaved", "tables"])
def test_a_form_that_means_something_else_is_noticed(tiny_fast_ir: Path, tmp_path: Path, change: str) -> None:
    """Pairs of other columns turned; tables of another scale (as YaRN has one)."""
    import onnx

    write_onnx(tiny_fast_ir, tmp_path, longest=128)
    theirs = load_ir(tiny_fast_ir, full_precision=True)
    check(tmp_path, theirs)
    model = onnx.load(str(tmp_path / MODEL_FILE))
    for node in model.graph.node:
        for option in node.attribute:
            if option.name == "rotary_interleaved":
                option.i = int(change == "interleaved")
    onnx.save(model, str(tmp_path / MODEL_FILE))
    if change == "tables":
        with np.load(tmp_path / "rotary.npz") as stored:
            tables = {name: stored[name] for name in stored.files}
        scaled = {name: 1.14 * table for name, table in tables.items() if name != "longest"}
        np.savez(tmp_path / "rotary.npz", **(tables | scaled))
    files = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(NoONNXForm, match="says something else"):
        check(tmp_path, theirs)
    assert {path.name for path in tmp_path.iterdir()} == files, "what it was asked with is gone"


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}


@pytest.mark.parametrize("context_length", [300, 8192])
def test_tables_that_change_with_the_length_of_the_text_are_refused_by_name(
    tmp_path: Path, context_length: int
) -> None:
    """A row of another position cannot be computed later on, when a context grows."""
    rope = LONGROPE | {"original_max_position_embeddings": 128}
    options: dict[str, Any] = {
        "rope_parameters": rope,
        "original_max_position_embeddings": 128,
        "context_length": context_length,
    }
    ir = export_ir(build("phi3", tmp_path / "torch", **options), tmp_path / "ir")
    with pytest.raises(NoONNXForm, match="changes with the length of the text"):
        write_onnx(ir, tmp_path, longest=context_length)


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}),
        ("smollm3", {"no_rope_layer_interval": 2, "num_hidden_layers": 4}),  # every other layer turns nothing
    ],
)
def test_tables_and_layers_without_are_the_models_own(tmp_path: Path, arch: str, options: dict[str, Any]) -> None:
    ir = export_ir(build(arch, tmp_path / "torch", **options), tmp_path / "ir", "f32")
    write_onnx(ir, tmp_path, longest=128)
    check(tmp_path, load_ir(ir, full_precision=True))


def test_what_is_done_to_queries_on_their_way_is_not_left_out(tiny_ir: Path, tmp_path: Path) -> None:
    model = ov.Core().read_model(tiny_ir)
    attention = next(n for n in model.get_ordered_ops() if n.get_type_name() == "ScaledDotProductAttention")
    product = attention.input_value(0).get_node()
    while product.get_type_name() != "MatMul":
        product = product.input_value(0).get_node()
    readers = product.output(0).get_target_inputs()
    clipped = ops.clamp(product, -8.0, 8.0)
    for reader in readers:
        reader.replace_source_output(clipped.output(0))
    model.validate_nodes_and_infer_types()
    ov.save_model(model, tmp_path / "clipped.xml", compress_to_fp16=False)
    with pytest.raises(NoONNXForm, match="got Clamp between a product and the attention"):
        write_onnx(tmp_path / "clipped.xml", tmp_path / "made", longest=64)
