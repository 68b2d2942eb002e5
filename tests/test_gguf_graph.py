"""The graph of a GGUF file is the function of the model that it was made from, on each engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec.backends.onnx.check import TOKENS, check
from edgespec.backends.onnx.graph import MODEL_FILE, WEIGHTS_FILE, write_onnx
from edgespec.backends.onnx.session import OnnxRuntimeModel
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.backends.openvino.runtime import ov
from edgespec.backends.openvino.settings import FULL_PRECISION, Settings
from edgespec.errors import ConversionError
from edgespec.gguf.convert import convert, read_header
from tests import tiny_gguf, tiny_models

IDS = np.arange(40, 56)
K_TYPES = {"attn_v": "Q6_K", "ffn_down": "Q6_K", "token_embd": "Q4_K"}
"""as in a Q4_K_M file"""

GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 0.5, "attention_multiplier": 0.3}


def converted(source: Path) -> Path:
    folder = source.with_suffix("")
    folder.mkdir()
    convert(read_header(source), folder, name="tiny", source="tiny")
    return folder / "openvino_model.xml"


def made(path: Path, **options: Any) -> Path:
    return converted(tiny_gguf.write(path.with_suffix(".gguf"), **options))


def stateful(xml: Path) -> Any:
    """The IR as any tool runs it: ids and the mask of all so far -> logits."""
    request = ov.Core().compile_model(xml, "CPU", FULL_PRECISION).create_infer_request()

    def run(ids: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.float32]:
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        found: NDArray[np.float32] = request.infer({**inputs, "beam_idx": np.arange(len(ids))})["logits"].copy()
        return found

    return run


def logits(xml: Path) -> NDArray[np.float32]:
    found: NDArray[np.float32] = stateful(xml)(IDS[None], np.ones((1, len(IDS)), np.int64))[0]
    return found


def paged(xml: Path, capacity: int = 64) -> OpenVINOPagedModel:
    return OpenVINOPagedModel(ov.Core(), xml, "CPU", Settings.in_full_precision(), capacity=capacity)


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("llama", {}),
        ("llama", {"kv_heads": 4}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 32}),
        ("granite", GRANITE),
    ],
)
def test_the_function_is_the_originals(tmp_path: Path, arch: str, options: dict[str, Any]) -> None:
    """Of a model in transformers: the IR in steps, in a padded batch, paged, and on ONNX Runtime."""
    pytest.importorskip("optimum.intel")
    expected, source = original(tmp_path, arch, **options)
    assert np.abs(expected).max() > 1
    xml, n = converted(source), len(IDS)

    run = stateful(xml)
    steps = [run(IDS[None, a:b], np.ones((1, b), np.int64)) for a, b in ((0, 9), (9, 10), (10, n))]
    np.testing.assert_allclose(np.concatenate(steps, 1)[0], expected, atol=1e-3)

    mask = np.ones((2, n), np.int64)
    mask[0, :4] = 0
    batch = stateful(xml)(np.stack([np.r_[[7] * 4, IDS[:-4]], IDS]), mask)
    np.testing.assert_allclose(batch[0, 4:], expected[:-4], atol=1e-3)
    np.testing.assert_allclose(batch[1], expected, atol=1e-3)

    write_onnx(xml, tmp_path, longest=64)
    for model in (paged(xml), OnnxRuntimeModel(tmp_path, "fast", capacity=64)):
        rows = [model.forward(IDS[a:b].tolist()).logits.copy() for a, b in ((0, 9), (9, n))]
        np.testing.assert_allclose(np.concatenate(rows), expected, atol=1e-3)


def original(folder: Path, arch: str, more: Any = None, **options: Any) -> tuple[NDArray[np.float32], Path]:
    """Logits of a random model in transformers, and its GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM

    built = tiny_models.build(arch, folder / "hf", **options)
    model = AutoModelForCausalLM.from_pretrained(built, dtype=torch.float32)
    with torch.no_grad():
        found: NDArray[np.float32] = model(torch.from_numpy(IDS[None])).logits[0].numpy()
    tensors = more(model) if more else {}
    return found, tiny_models.write_gguf(built, folder / f"{arch}.gguf", tensors)


def test_rotary_factors_are_the_originals(tmp_path: Path) -> None:
    """Llama 3.1 and later divide the frequencies."""
    pytest.importorskip("optimum.intel")
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled |= {"original_max_position_embeddings": 64, "rope_theta": 10000.0}

    def factors(model: Any) -> dict[str, NDArray[np.float32]]:
        plain = 10000.0 ** (-np.arange(8) / 8)
        return {"rope_freqs.weight": (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)}

    expected, source = original(tmp_path, "llama", factors, rope_parameters=scaled)
    np.testing.assert_allclose(logits(converted(source)), expected, atol=1e-3)


def test_factors_have_to_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"rope_freqs\.weight holds numbers that are not positive"):
        made(tmp_path / "tiny", tensors={"rope_freqs.weight": np.zeros(8)})


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("quantize", "kinds", "products"),
    [
        ("Q4_K", K_TYPES, 2 * (2 + 1 + 1 + 1) + 1),  # query and key are one, value is another
        ("Q4_0", {"attn_v": "Q5_0"}, 2 * (2 + 1 + 1 + 1) + 1),
        ("Q5_0", {"attn_v": "Q8_0"}, 2 * (1 + 1 + 1 + 1) + 1),
        ("Q4_1", {}, 2 * (1 + 1 + 1 + 1) + 1),
        ("Q2_K", {"attn": "Q3_K"}, 2 * (1 + 1 + 1 + 1) + 1),
        ("IQ4_XS", {"ffn": "Q5_K"}, 2 * (1 + 1 + 1 + 1) + 1),
        ("F16", {"ffn": "BF16"}, 0),
    ],
)
def test_every_form_runs_on_both_engines(
    tmp_path: Path, quantize: str, kinds: dict[str, str], products: int, tied: bool
) -> None:
    import onnx

    xml = made(tmp_path / "tiny", quantize=quantize, kinds=kinds, hidden=256, tied=tied)
    of_paged = paged(xml, TOKENS)
    np.testing.assert_allclose(of_paged.forward(IDS.tolist()).logits, logits(xml), rtol=1e-3, atol=2e-3)
    of_paged.cache.reset()
    write_onnx(xml, tmp_path, longest=TOKENS)
    check(tmp_path, of_paged)
    model = onnx.load(str(tmp_path / MODEL_FILE), load_external_data=False)
    found = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(found) == products
    assert all(len(node.input) == 3 for node in found), "the zero point in the middle is named nowhere"
    places = [{part.key: part.value for part in one.external_data} for one in model.graph.initializer]
    beside = [int(place["length"]) for place in places if place]
    assert 0 <= (tmp_path / WEIGHTS_FILE).stat().st_size - sum(beside) < 8192, "nothing lies there twice"


def test_tied_weights_stay_one(tmp_path: Path) -> None:
    sizes = [
        made(tmp_path / str(tied), quantize="Q4_1", tied=tied).with_suffix(".bin").stat().st_size
        for tied in (True, False)
    ]
    size = len(tiny_gguf.vocabulary()[0]) * 64 * (4 + 2) // 8
    assert sizes[1] - sizes[0] == pytest.approx(size, abs=256)


def test_logits_of_some_rows_are_those_of_all(tmp_path: Path) -> None:
    """The head is two products: the rows are chosen before both."""
    model = paged(made(tmp_path / "tiny", quantize="Q4_1"))
    every = model.forward(IDS.tolist()).logits.copy()
    model.cache.reset()
    model.prefill(IDS[:-1].tolist())
    np.testing.assert_allclose(model.forward(IDS[-1:].tolist()).logits, every[-1:], rtol=1e-4, atol=1e-4)


def test_biases_of_a_llama_go_with_their_rows(tmp_path: Path) -> None:
    """llama.cpp stores a head of 16 rows of a Llama as 0, 8, 1, 9, ...; a Qwen2 has them as they are."""

    def in_graph_order(name: str, values: NDArray[Any]) -> NDArray[Any]:
        if "attn_q" not in name and "attn_k" not in name:
            return values
        return np.concatenate([half for h in np.split(values, len(values) // 16) for half in (h[::2], h[1::2])])

    biases = {f"blk.0.attn_{of}.bias": np.random.default_rng(1).normal(0, 1, n) for of, n in (("q", 64), ("k", 32))}
    ordered = {name: in_graph_order(name, values) for name, values in biases.items()}
    llama = made(tmp_path / "llama", tensors=biases)
    qwen2 = made(tmp_path / "qwen2", arch="qwen2", tensors=ordered, change=in_graph_order)
    np.testing.assert_allclose(logits(llama), logits(qwen2), rtol=1e-3, atol=1e-3)
    assert np.abs(logits(llama) - logits(made(tmp_path / "none"))).max() > 0.1


def test_norms_biases_and_frequencies_keep_their_precision(tmp_path: Path) -> None:
    """Beside weights in F16 too."""
    random = np.random.default_rng(2)
    norms = {f"blk.{i}.{of}_norm.weight": random.normal(1, 0.1, 64) for i in range(2) for of in ("attn", "ffn")}
    norms["output_norm.weight"] = random.normal(1, 0.1, 64)
    bias = random.normal(0, 1, 32)
    xml = made(
        tmp_path / "tiny",
        change=lambda name, values: norms[name].astype(np.float32) if name in norms else values,
        tensors={"blk.0.attn_v.bias": bias},
    )
    found = [
        node.get_data().ravel()
        for node in ov.Core().read_model(xml).get_ordered_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.f32
    ]
    for values in norms.values():
        assert any(np.array_equal(values.astype(np.float32), one) for one in found)
    assert any(np.array_equal(bias.astype(np.float32), one[-32:]) for one in found)
    frequencies = 10000 ** (-np.arange(8) / 8)
    assert any(one.shape == (8,) and np.allclose(one, frequencies, rtol=1e-6, atol=0) for one in found)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO itself writes what there is room for, and says nothing."""

    def cut_short(model: Any, xml: Path, serialize: Any = ov.serialize) -> None:
        serialize(model, xml)
        xml.with_suffix(".bin").write_bytes(b"")

    monkeypatch.setattr(ov, "serialize", cut_short)
    with pytest.raises(ConversionError, match=r"cannot write .*openvino_model\.xml.*Free disk space: [0-9]+ MiB"):
        made(tmp_path / "tiny")
