"""Hidden states of layers: on request, those of transformers on every engine, and told of a prefill too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec.backends.exact_widths import ExactWidths
from edgespec.backends.fake import FakeModel, random_table
from edgespec.backends.layer_states import NoSuchLayer
from edgespec.backends.onnx.graph import MODEL_FILE, write_onnx
from edgespec.backends.onnx.ready import ReadyModel
from edgespec.backends.onnx.session import OnnxRuntimeModel
from edgespec.gguf.convert import convert, read_header
from edgespec.protocols import Model
from edgespec.types import Hidden, Verdict
from tests import tiny_gguf
from tests.conftest import load_ir, load_onnx
from tests.contract import LAYERS
from tests.tiny_models import build, export_ir
from tests.tiny_onnx import write

TEXT = [(11 * i + i * i) % 300 + 10 for i in range(12)]


@pytest.mark.parametrize("load", [load_ir, load_onnx])
def test_hidden_states_come_on_request(tiny_ir: Path, load: Callable[..., Model]) -> None:
    model = load(tiny_ir, layers=LAYERS)
    step = model.forward([1, 2, 3])
    assert model.capabilities.hidden == LAYERS and set(step.hidden) == set(LAYERS)
    for states in step.hidden.values():
        assert states.shape == (3, 64) and np.isfinite(states).all()
    assert model.forward([4]).hidden[1].shape == (1, 64)
    assert not load(tiny_ir).forward([1]).hidden
    with pytest.raises(NoSuchLayer, match="no such layer; got 3; allowed: 0 to 2"):
        load(tiny_ir, layers=(3,))


def test_models_with_other_states_are_measured_by_themselves(tiny_ir: Path) -> None:
    """Which widths are exact, and how long forwards take."""
    for load in (load_ir, load_onnx):
        models = [load(tiny_ir, layers=layers) for layers in ((), (2,), (1, 2), ())]
        first, *others, again = [model.fingerprint for model in models]
        assert first == again and len({first, *others}) == 3


@pytest.mark.parametrize(
    "arch",
    ["llama", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("phi3", "qwen2", "qwen3"))],
)
def test_hidden_states_are_those_of_transformers(tmp_path: Path, arch: str) -> None:
    folder = build(arch, tmp_path / "torch", layers=3)
    ir, layers = export_ir(folder, tmp_path / "ir"), (0, 1, 2, 3)
    expected = by_transformers(folder)
    assert len(expected) == 4
    for model in (load_ir(ir, layers=layers, full_precision=True), load_onnx(ir, layers=layers)):
        require_like(model, expected)


@pytest.mark.parametrize("kind", ["genai", "optimum"])
def test_hidden_states_of_ready_models_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "torch", context_length=1024)
    ready = write(folder, tmp_path / kind, kind) / "model.onnx"
    require_like(ReadyModel(ready, "fast", capacity=64, layers=LAYERS), by_transformers(folder))


def by_transformers(folder: Path) -> list[NDArray[np.float32]]:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        said = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([TEXT]), output_hidden_states=True)
    return [states[0].numpy() for states in said.hidden_states]


def require_like(model: Model, expected: list[NDArray[np.float32]]) -> None:
    step = model.forward(TEXT)
    for layer, states in enumerate(expected):
        correlation = np.corrcoef(step.hidden[layer].ravel(), states.ravel())[0, 1]
        assert correlation > 0.999, (layer, correlation)


@pytest.mark.parametrize("made_of", ["llama int8", "llama int4", "qwen2 int8", "llama Q4_K", "qwen2 Q8_0"])
def test_both_engines_say_the_same(tmp_path: Path, made_of: str) -> None:
    """In full precision on both sides nothing is left but the order of sums; a Q4_K head has columns of its own."""
    arch, weights = made_of.split()
    if weights.startswith("Q"):
        source = tiny_gguf.write(tmp_path / "tiny.gguf", arch=arch, quantize=weights, hidden=256)
        (tmp_path / "ir").mkdir()
        convert(read_header(source), tmp_path / "ir", name="tiny", source="made")
        ir = tmp_path / "ir" / "openvino_model.xml"
    else:
        ir = export_ir(build(arch, tmp_path / "torch"), tmp_path / "ir", weights)
    text = [(7 * i + i * i) % 200 + 5 for i in range(48)]
    theirs, ours = (load(ir, "fast", layers=LAYERS, full_precision=True) for load in (load_ir, load_onnx))
    for begin in range(0, 48, 16):
        left, right = (model.forward(text[begin : begin + 16]).hidden for model in (theirs, ours))
        for layer in LAYERS:
            assert np.abs(left[layer] - right[layer]).max() < 1e-4 * np.abs(left[layer]).max(), layer


def test_a_value_of_another_width_is_not_taken_for_states(tiny_fast_ir: Path, tmp_path: Path) -> None:
    """Embeddings twice beside each other: the first layer takes one, and what leads around it the other."""
    import onnx

    write_onnx(tiny_fast_ir, tmp_path, longest=64)
    model = onnx.load(str(tmp_path / MODEL_FILE), load_external_data=False)
    states = next(node for node in model.graph.node if node.op_type == "SimplifiedLayerNormalization").input[0]
    readers = [node for node in model.graph.node if states in node.input]
    model.graph.node.insert(
        list(model.graph.node).index(readers[0]), onnx.helper.make_node("Concat", [states] * 2, ["doubled"], axis=-1)
    )
    for number, node in enumerate(readers):
        half = onnx.helper.make_node("Split", ["doubled"], [f"{number}.0", f"{number}.1"], axis=-1, num_outputs=2)
        node.input[:] = [half.output[number] if name == states else name for name in node.input]
        model.graph.node.insert(list(model.graph.node).index(node), half)
    onnx.save(model, str(tmp_path / MODEL_FILE))
    assert OnnxRuntimeModel(tmp_path, "fast", capacity=64, layers=(1,)).forward([1, 2]).hidden[1].shape == (2, 128)
    with pytest.raises(NoSuchLayer, match="hidden states of layer 0 were not found"):
        OnnxRuntimeModel(tmp_path, "fast", capacity=64, layers=(0, 1))


def test_hidden_states_of_a_prefill_and_of_what_it_defers_are_told(tiny_ir: Path) -> None:
    fake = FakeModel(random_table(50, seed=1), 50, max_width=64, leaves=20, layers=(1,))
    paged = load_ir(tiny_ir, layers=(1,))
    paged.set_exact_widths(ExactWidths(paged.min_width, 64))
    for model in (fake, paged):
        told: list[tuple[int, list[int], int]] = []

        def observe(start: int, tokens: Sequence[int], hidden: Hidden, told: list[Any] = told) -> None:
            told.append((start, list(tokens), len(hidden[1])))

        text = [(7 * i) % 50 for i in range(71)]
        model.prefill(text, reserve=3, observe=observe)
        assert told == [(0, text[:64], 64)]
        step = model.forward([1, 2, 3])
        assert (step.prompt_rows, len(step.hidden[1]), len(step.logits)) == (7, 10, 3)
        start, tokens, hidden = step.kept([*text, 1, 2, 9], Verdict(1, (2, 9), (0, 1)))
        assert (start, list(tokens), len(hidden[1])) == (64, [*text[64:], 1, 2], 9)
        assert np.array_equal(hidden[1], step.hidden[1][:9])
