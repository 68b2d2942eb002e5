"""After requantize the IR's weights are the GGUF file's, by OpenVINO's own arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec.backends.openvino.settings import FULL_PRECISION, Settings
from edgespec.errors import ConversionError
from edgespec.gguf.convert import convert, read_header
from edgespec.gguf.weights import requantize
from tests import tiny_gguf, tiny_models


def made(folder: Path, **options: Any) -> tuple[Path, Path]:
    """A GGUF file and the IR of it, a product for each of its matrices."""
    source = tiny_gguf.write(folder / "tiny.gguf", **options)
    (folder / "ir").mkdir()
    convert(read_header(source), folder / "ir", name="tiny", source="tiny", merge=False)
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


def in_graph_order(name: str, values: NDArray[np.float32], head: int = 16) -> NDArray[np.float32]:
    """Rows of queries and keys of a llama. GGUF: 0 8 1 9 ..., the graph: 0 1 2 ... within a head."""
    if "attn_q" not in name and "attn_k" not in name:
        return values
    return np.concatenate([half for h in np.split(values, len(values) // head) for half in (h[::2], h[1::2])])


def logits(xml: Path) -> NDArray[np.float32]:
    """Of sixteen tokens, by the IR as it is."""
    import openvino as ov

    request = ov.Core().compile_model(xml, "CPU", FULL_PRECISION).create_infer_request()
    ids = np.arange(40, 56)[None]
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(16)[None]}
    found: NDArray[np.float32] = request.infer({**inputs, "beam_idx": np.zeros(1, np.int32)})["logits"].copy()
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("quantize", "hidden"), [("Q4_1", 64), ("Q4_K", 256)])
def test_faithful_weights_are_the_files_to_half_precision(
    tmp_path: Path, quantize: str, hidden: int, tied: bool
) -> None:
    xml, source = made(tmp_path, quantize=quantize, hidden=hidden, tied=tied)
    size = xml.with_suffix(".bin").stat().st_size
    assert requantize(xml, read_header(source), "faithful", merge=False) == read_header(source).precision
    assert xml.with_suffix(".bin").stat().st_size < 1.1 * size

    expected, seen = stored(source), set()
    for name, weight in weights(xml).values():
        values = expected[name]
        values = in_graph_order(name, values, head=hidden // 4)
        blocks, folded = values.reshape(-1, 32), weight.reshape(-1, 32)
        allowed = 2**-10 * (np.abs(blocks).max(1) + np.ptp(blocks, 1)) + 1e-7
        assert (np.abs(folded - blocks).max(1) <= allowed).all(), name
        seen.add(name)
    assert seen == {name for name, values in expected.items() if values.ndim == 2}


@pytest.mark.parametrize("tied", [True, False])
def test_faithful_f32_weights_are_the_files(tmp_path: Path, tied: bool) -> None:
    """GenAI reads no F32 and gets F16; numbers that F16 does not hold come back whole."""

    def change(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if "ffn_up" in name:
            values[1, 1] = 1e5
        return values

    xml, source = made(tmp_path, quantize="F32", tied=tied, change=change)
    expected, seen = stored(source), set()
    for name, weight in weights(xml).values():
        np.testing.assert_array_equal(weight, in_graph_order(name, expected[name]))
        seen.add(name)
    assert seen == {name for name, values in expected.items() if values.ndim == 2}


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("quantize", ["F32", "F16", "Q4_0", "Q8_0"])
def test_int8_is_within_half_a_step_in_the_same_place(tmp_path: Path, quantize: str, tied: bool) -> None:
    """GenAI reads these types without loss."""
    xml, source = made(tmp_path, quantize=quantize, tied=tied)
    before = weights(xml)
    assert requantize(xml, read_header(source), "int8", merge=False) == "int8"
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
        requantize(xml, read_header(source), "int8", merge=False)
        sizes.append(xml.with_suffix(".bin").stat().st_size)
    assert sizes[1] - sizes[0] == pytest.approx(len(tiny_gguf.vocabulary()[0]) * (64 + 3), abs=512)


def test_faithful_leaves_a_lossless_ir_alone(tmp_path: Path) -> None:
    xml, source = made(tmp_path, quantize="Q4_0")
    before = xml.stat().st_mtime_ns
    assert requantize(xml, read_header(source), "faithful", merge=False) == "q4_0"
    assert xml.stat().st_mtime_ns == before


def test_the_changed_model_runs_paged(tmp_path: Path) -> None:
    import openvino as ov

    from edgespec.backends.openvino.paged import OpenVINOPagedModel

    core, logits = ov.Core(), []
    for kind in ("faithful", "int8"):
        (folder := tmp_path / kind).mkdir()
        xml, source = made(folder, quantize="Q4_1")
        requantize(xml, read_header(source), kind)
        model = OpenVINOPagedModel(core, xml, "CPU", Settings.make("CPU", None), capacity=64)
        logits.append(model.forward([5, 6, 7, 8]).logits.copy())
    assert np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1] > 0.999


def test_another_files_ir_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    xml, _ = made(tmp_path, quantize="Q4_1")
    before = {path.name: path.read_bytes() for path in xml.parent.iterdir()}
    (tmp_path / "other").mkdir()
    other = tiny_gguf.write(tmp_path / "other" / "tiny.gguf", quantize="Q4_1", hidden=96)
    with pytest.raises(ConversionError, match="not made from this GGUF file"):
        requantize(xml, read_header(other), "int8")
    assert {path.name: path.read_bytes() for path in xml.parent.iterdir()} == before


def test_rotary_frequencies_are_divided_by_the_files_factors(tmp_path: Path) -> None:
    """Factors that turn one base into another give the model of the other base (Llama 3.1 and later have factors)."""
    made_with = {
        "factors": {"tensors": {"rope_freqs.weight": 50 ** (np.arange(8) / 8)}},
        "base": {"extra": {"llama.rope.freq_base": 500000.0}},
        "neither": {},
    }
    found = {}
    for name, options in made_with.items():
        (tmp_path / name).mkdir()
        xml, _ = made(tmp_path / name, **options)
        found[name] = logits(xml)
    np.testing.assert_allclose(found["factors"], found["base"], rtol=1e-3, atol=1e-3)
    assert np.abs(found["neither"] - found["base"]).max() > 0.1


@pytest.mark.parametrize("rope", ["default", "llama3"])
def test_the_function_is_the_originals(tmp_path: Path, rope: str) -> None:
    """Of a Llama in transformers, with rotary positions as they were up to Llama 3 and from Llama 3.1 on."""
    pytest.importorskip("optimum.intel")
    import torch
    from transformers import AutoModelForCausalLM

    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled |= {"original_max_position_embeddings": 64, "rope_theta": 10000.0}
    options = {"rope_parameters": scaled} if rope == "llama3" else {}
    folder = tiny_models.build("llama", tmp_path / "hf", **options)
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = original(torch.arange(40, 56)[None]).logits.numpy()
    plain, frequencies = 10000.0 ** (-np.arange(8) / 8), original.model.rotary_emb.inv_freq.numpy()
    factors = {"rope_freqs.weight": (plain / frequencies).astype(np.float32)} if rope == "llama3" else {}
    assert np.allclose(plain, frequencies) == (rope == "default")

    source = tiny_models.write_gguf(folder, tmp_path / "llama.gguf", factors)
    (tmp_path / "ir").mkdir()
    convert(read_header(source), tmp_path / "ir", name="llama", source="llama")
    found = logits(tmp_path / "ir" / "openvino_model.xml")
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_norms_biases_and_frequencies_keep_their_precision(tmp_path: Path) -> None:
    """GenAI saves a model of F16 weights in F16, these too."""
    import openvino as ov

    random = np.random.default_rng(2)
    norms = {f"blk.{i}.{of}_norm.weight": random.normal(1, 0.1, 64) for i in range(2) for of in ("attn", "ffn")}
    norms["output_norm.weight"] = random.normal(1, 0.1, 64)
    bias = random.normal(0, 1, 32)
    xml, _ = made(
        tmp_path,
        change=lambda name, values: norms.get(name, values).astype(np.float32),
        tensors={"blk.0.attn_v.bias": bias},
    )
    found = [
        node.get_data().ravel()
        for node in ov.Core().read_model(xml).get_ordered_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.f32
    ]
    for values in (*norms.values(), bias):
        assert any(np.array_equal(values.astype(np.float32), one) for one in found)
    frequencies = 10000 ** (-np.arange(8) / 8)
    assert any(one.shape == (8,) and np.allclose(one, frequencies, rtol=1e-6, atol=0) for one in found)


def test_factors_have_to_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"rope_freqs\.weight holds numbers that are not positive"):
        made(tmp_path, tensors={"rope_freqs.weight": np.zeros(8)})


def test_biases_of_a_llama_go_with_their_rows(tmp_path: Path) -> None:
    """A qwen2 rotates as transformers does: with rows and biases in that order it is the same function."""
    biases = {f"blk.0.attn_{of}.bias": np.random.default_rng(1).normal(0, 1, n) for of, n in (("q", 64), ("k", 32))}
    ordered = {name: in_graph_order(name, values) for name, values in biases.items()}
    found = {}
    for arch, tensors in (("llama", biases), ("qwen2", ordered)):
        (tmp_path / arch).mkdir()
        xml, _ = made(
            tmp_path / arch, arch=arch, tensors=tensors, **({"change": in_graph_order} if arch == "qwen2" else {})
        )
        found[arch] = logits(xml)
    np.testing.assert_allclose(found["llama"], found["qwen2"], rtol=1e-3, atol=1e-3)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    def change(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if "token_embd" in name:
            values[0, 0] = np.nan
        return values

    with pytest.raises(ConversionError, match="token_embd.weight holds numbers that are not finite"):
        made(tmp_path, quantize="F32", change=change)
