"""Ready ONNX folders run as they are; what is no graph of a language model is refused before an engine reads it."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import edgespec
from edgespec import bundle
from edgespec.backends.onnx.ready import ReadyModel
from edgespec.backends.onnx.ready_graph import read
from edgespec.backends.onnx.skeleton import _varint, without_weights
from edgespec.cli import cli
from edgespec.errors import BackendError, BundleError, EdgespecError, IntegrityError, SettingError
from edgespec.types import Logits
from tests.tiny_models import build
from tests.tiny_onnx import write

TEXT = [(7 * i + i * i) % 200 + 5 for i in range(40)]


@pytest.fixture(scope="module")
def torch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(
        "llama", tmp_path_factory.mktemp("ready") / "torch", hidden=128, heads=4, kv_heads=2, context_length=1024
    )


@pytest.fixture(scope="module")
def genai(torch_folder: Path) -> Path:
    return write(torch_folder, torch_folder.with_name("genai"), "genai")


@pytest.fixture(scope="module")
def optimum(torch_folder: Path) -> Path:
    return write(torch_folder, torch_folder.with_name("optimum"), "optimum")


@pytest.fixture
def folder(genai: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(genai, tmp_path / "model"))


def theirs(torch_folder: Path) -> Logits:
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(str(torch_folder), dtype=torch.float32)
    with torch.no_grad():
        found: Logits = model(torch.tensor([TEXT])).logits[0].numpy()
    return found


def at_once(path: Path) -> Logits:
    """The whole text in one forward, without anything of ours."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {"input_ids": np.array([TEXT]), "attention_mask": np.ones((1, len(TEXT)), np.int64)}
    empty = np.zeros((1, 2, 0, 32), np.float32)
    given |= {port.name: empty for port in session.get_inputs() if port.name.startswith("past")}
    found: Logits = session.run(["logits"], given)[0][0]
    return found


def ours(path: Path) -> Logits:
    """With a wrong turn between two chunks."""
    model = ReadyModel(path, "fast", capacity=128)
    rows = []
    for begin in range(0, len(TEXT), 8):
        rows.append(model.forward(TEXT[begin : begin + 8]).logits.copy())
        model.forward([3, 4, 5])
        model.cache.crop(begin + 8)
    return np.concatenate(rows)


@pytest.mark.parametrize("kind", ["genai", "optimum"])
def test_it_is_the_function_of_the_model(torch_folder: Path, kind: str, request: pytest.FixtureRequest) -> None:
    expected = theirs(torch_folder)
    found = ours(request.getfixturevalue(kind) / "model.onnx")
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_positions_have_64_bits_whatever_the_system_calls_a_whole_number(
    optimum: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy 1 on Windows makes 32 bits of them, and the engine reads memory of twice as many."""
    expected, arange = ours(optimum / "model.onnx"), np.arange
    monkeypatch.setattr(np, "arange", lambda *numbers, dtype=np.int32: arange(*numbers, dtype=dtype))
    assert np.array_equal(ours(optimum / "model.onnx"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["fp32", "int4"])
def test_what_the_model_builder_writes_runs(torch_folder: Path, tmp_path: Path, bits: str) -> None:
    pytest.importorskip("onnxruntime_genai.models.builder")
    arguments = ["-i", torch_folder, "-o", tmp_path / "made", "-p", bits, "-e", "cpu", "-c", tmp_path / "cache"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["builder", *map(str, arguments)])
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    path = tmp_path / "made" / "model.onnx"
    expected = theirs(torch_folder) if bits == "fp32" else at_once(path)
    assert np.abs(ours(path) - expected).max() < 1e-3 * np.abs(expected).max()
    read_bundle = bundle.read(tmp_path / "made")
    assert read_bundle.manifest.generation.eos_token_ids == (1,) and read_bundle.chat_template()


def test_a_folder_is_a_target_and_a_draft(genai: Path, optimum: Path) -> None:
    drafted = edgespec.load(genai, draft=optimum, num_draft_tokens=3)
    plain = edgespec.load(genai, draft="none")
    prompt = "The lighthouse had"
    found = drafted.generate(prompt, max_new_tokens=24)
    assert found.token_ids == plain.generate(prompt, max_new_tokens=24).token_ids
    assert drafted.target.capabilities.numerics == "exact" and drafted.target.capabilities.backend == "onnxruntime"
    assert found.stats.accepted > 0, "the same model in another form"


def test_a_context_leaves_room_for_pads(genai: Path) -> None:
    """The rotary tables have 1,024 rows."""
    model = ReadyModel(genai / "model.onnx", "fast", capacity=4096)
    assert model.cache.capacity == 1024 - 64
    model.prefill([5] * 959)
    model.forward([6])


def test_it_runs_on_one_engine(genai: Path) -> None:
    with pytest.raises(SettingError, match="runs on ONNX Runtime only"):
        edgespec.load(genai, draft="none", backend="openvino")


def test_the_command_runs_a_folder(optimum: Path) -> None:
    ran = CliRunner().invoke(cli, ["run", "-m", str(optimum), "--draft", "none", "-n", "4", "Hello"])
    assert ran.exit_code == 0, ran.output


# --- the manifest


def test_a_folder_is_described_by_its_config(genai: Path, optimum: Path, tmp_path: Path) -> None:
    for folder in (genai, optimum):
        manifest = bundle.read(folder).manifest
        assert (manifest.target.file, manifest.target.vocab_size) == ("model.onnx", 512)
        assert manifest.generation.context_length == 1024 and manifest.generation.eos_token_ids == (1,)
        assert manifest.generation.eos_token == "<|eos|>"
    inside = Path(shutil.copytree(optimum, tmp_path / "inside"))
    (inside / "onnx").mkdir()
    (inside / "model.onnx").rename(inside / "onnx" / "model.onnx")
    assert bundle.read(inside).manifest.target.file == "onnx/model.onnx"


def test_a_manifest_holds_hashes_of_graph_and_weights(folder: Path) -> None:
    entry = bundle.model_file(folder, "model.onnx", precision="f32", vocab_size=512)
    found = bundle.Bundle(folder, bundle.read(folder).manifest)
    assert entry.weights_bytes == (folder / "model.onnx.data").stat().st_size
    assert found.model_path(entry) == folder / "model.onnx"
    for name in ("model.onnx.data", "model.onnx"):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(IntegrityError, match="is not the file"):
            found.model_path(entry)
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
    (folder / "model.onnx.data").unlink()
    with pytest.raises(BundleError, match="missing a file"):
        found.model_path(entry)


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.onnx"])
def test_a_file_that_is_missing_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(BundleError, match=f"no {missing}"):
        bundle.read(folder)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"decoder": {"filename": "../model.onnx"}}, "inside the folder"),
        ({"decoder": {"filename": 7}}, "inside the folder"),
        ({"decoder": {"pipeline": [{}]}}, "got pipeline"),
        ({"vision": {}}, "got vision"),
        ({"vocab_size": None}, "does not describe a model"),
        ({"context_length": -1}, "does not describe a model"),
    ],
)
def test_a_config_that_says_something_else_is_refused(folder: Path, change: dict[str, Any], error: str) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({"model": config["model"] | change}), encoding="utf-8")
    with pytest.raises(BundleError, match=error):
        bundle.read(folder)


# --- graphs of strangers


def spoiled(folder: Path, change: Callable[[Any], object]) -> Path:
    import onnx

    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def node(model: Any, kind: str) -> Any:
    return next(node for node in model.graph.node if node.op_type == kind)


def weights(model: Any) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.external_data)


def place(model: Any, **said: str) -> None:
    for entry in weights(model).external_data:
        entry.value = said.get(entry.key, entry.value)


def branch(model: Any) -> None:
    import onnx

    empty = onnx.helper.make_graph([], "inside", [], [])
    node(model, "Sigmoid").attribute.append(onnx.helper.make_attribute("then_branch", empty))


def hidden_weights(model: Any) -> None:
    import onnx

    made = onnx.helper.make_tensor("x", 1, [1], [1.0])
    made.ClearField("float_data")
    made.data_location = 1
    node(model, "Sigmoid").attribute.append(onnx.helper.make_attribute("value", made))


def another_past(model: Any) -> None:
    attention = node(model, "GroupQueryAttention")
    attention.output[1], attention.output[2] = attention.output[2], attention.output[1]


def longer_past(model: Any) -> None:
    """What attention is told of the length is twice the mask's."""
    import onnx

    total = node(model, "GroupQueryAttention").input[6]
    node(model, "GroupQueryAttention").input[6] = "twice"
    place = next(i for i, node in enumerate(model.graph.node) if node.op_type == "GroupQueryAttention")
    model.graph.node.insert(place, onnx.helper.make_node("Add", [total, total], ["twice"]))


def packed(model: Any) -> None:
    """Bytes that the engine would take for weights that it packed itself, without a look at them."""
    entry = weights(model).external_data.add()
    entry.key, entry.value = "prepacked_0", "MatMul+0|0;64;0"


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "upwards": (lambda model: place(model, location="../model.onnx.data"), "weights in the file"),
    "absolute": (lambda model: place(model, location="/etc/passwd"), "weights in the file"),
    "another file": (lambda model: place(model, location="genai_config.json"), "weights in the file"),
    "memory": (lambda model: place(model, location="*/_ORT_MEM_ADDR_/*"), "weights in the file"),
    "past the end": (lambda model: place(model, offset="900000000"), "cut short"),
    "negative": (lambda model: place(model, offset="-4"), "a place of weights"),
    "longer": (lambda model: place(model, length="64"), "not of the size"),
    "packed": (packed, "say more than where they lie"),
    "twice": (lambda model: weights(model).external_data.append(weights(model).external_data[0]), "say more than"),
    "larger": (lambda model: weights(model).dims.append(1 << 40), "cut short"),
    "a branch": (branch, "a program: operator Sigmoid"),
    "a loop": (lambda model: setattr(node(model, "Sigmoid"), "op_type", "Loop"), "a program: operator Loop"),
    "a domain": (lambda model: setattr(node(model, "Sigmoid"), "domain", "evil"), "the domain evil"),
    "an operator": (lambda model: setattr(node(model, "Sigmoid"), "op_type", "Sigmund"), "operator Sigmund"),
    "a function": (lambda model: model.functions.add(), "it has functions"),
    "weights of an operator": (hidden_weights, "outside the file"),
    "an input": (lambda model: setattr(model.graph.input[0], "name", "pixels"), "its inputs are pixels"),
    "an output": (lambda model: setattr(model.graph.output[0], "name", "hidden"), "it has no logits"),
    "types": (lambda model: setattr(model.graph.input[3].type.tensor_type, "elem_type", 10), "FLOAT16"),
    "keys for values": (another_past, "is not handed on"),
    "lengths": (longer_past, "does not go by the length of attention_mask"),
    "heads": (lambda model: setattr(node(model, "GroupQueryAttention").attribute[1], "i", 9), "number of heads"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_graph_that_is_another_is_refused(folder: Path, name: str) -> None:
    change, error = CHANGES[name]
    with pytest.raises(BackendError, match=error):
        ReadyModel(spoiled(folder, change), "fast", capacity=128)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_weights_behind_a_link_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.onnx.data").rename(tmp_path / "elsewhere")
    (folder / "model.onnx.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackendError, match="outside the folder"):
        read(folder / "model.onnx")


def test_damaged_files_raise_our_errors_only(genai: Path, tmp_path: Path) -> None:
    """Cut short anywhere, and with bytes changed."""
    path = tmp_path / "model.onnx"
    shutil.copyfile(genai / "model.onnx.data", tmp_path / "model.onnx.data")
    sound = (genai / "model.onnx").read_bytes()
    rng = np.random.default_rng(0)
    for end in [0, 1, *rng.integers(2, len(sound), 60)]:
        path.write_bytes(sound[:end])
        with suppress(EdgespecError):
            read(path)
    for _ in range(200):
        data = bytearray(sound)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        with suppress(EdgespecError):
            read(path)


def test_a_file_of_empty_operators_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x3a\x80\x80\x80\x02" + b"\x0a\x00" * (2 << 20))
    with pytest.raises(BackendError, match="more operators than any known model has"):
        read(tmp_path / "model.onnx")


def test_an_operator_of_empty_attributes_is_not_parsed(tmp_path: Path) -> None:
    node = b"\x2a\x00" * (1 << 20)
    graph = b"\x0a" + _varint(len(node)) + node
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + _varint(len(graph)) + graph)
    with pytest.raises(BackendError, match="more operators than any known model has"):
        read(tmp_path / "model.onnx")


def test_graphs_within_graphs_are_not_parsed(tmp_path: Path) -> None:
    graph = b""
    for _ in range(40):  # a node, whose attribute is a graph
        attribute = b"\x32" + _varint(len(graph)) + graph
        node = b"\x2a" + _varint(len(attribute)) + attribute
        graph = b"\x0a" + _varint(len(node)) + node
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + _varint(len(graph)) + graph)
    with pytest.raises(BackendError, match="graphs within graphs"):
        read(tmp_path / "model.onnx")


def test_costs_are_measured_whatever_the_context(optimum: Path, genai: Path) -> None:
    """They need more rows than this text may have, and the pads of its last rows have no positions of their own."""
    for folder in (optimum, genai):
        model = edgespec.load(folder, context_length=100, draft="ngram", numerics="fast")
        assert len(model.generate([5] * 90, max_new_tokens=8, ignore_eos=True).token_ids) == 8


def test_weights_inside_a_graph_are_not_parsed(optimum: Path) -> None:
    assert (optimum / "model.onnx").stat().st_size > 20 * len(without_weights(optimum / "model.onnx"))
