"""Operators of strangers' ONNX graphs: what language models are exported with is allowed, anything else is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import helper

from edgespec.backends.onnx.operators import ALLOWED, refuse_others
from edgespec.backends.onnx.ready import ReadyModel
from edgespec.backends.onnx.ready_graph import read
from edgespec.errors import BackendError
from tests.tiny_models import build
from tests.tiny_onnx import write


@pytest.fixture(scope="module")
def genai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("operators")
    torch = build("llama", parent / "torch", hidden=64, heads=4, kv_heads=2, context_length=1024)
    return write(torch, parent / "genai", "genai")


def graph_of(*nodes: Any, domains: tuple[str, ...] = ("",)) -> Any:
    made = helper.make_graph(list(nodes), "small", [], [])
    return helper.make_model(made, opset_imports=[helper.make_opsetid(name, 1) for name in domains])


def body() -> Any:
    return helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "inside", [], [])


REFUSED = {
    "If": (graph_of(helper.make_node("If", ["c"], ["y"], then_branch=body(), else_branch=body())), "program.* If"),
    "Loop": (graph_of(helper.make_node("Loop", ["n", "c"], ["y"], body=body())), "program.* Loop"),
    "Scan": (graph_of(helper.make_node("Scan", ["x"], ["y"], body=body(), num_scan_inputs=1)), "program.* Scan"),
    "a graph where none belongs": (graph_of(helper.make_node("Relu", ["x"], ["y"], body=body())), "program.* Relu"),
    "of ONNX": (graph_of(helper.make_node("LSTM", ["x"], ["y"])), "operator LSTM; allowed"),
    "of ONNX, of its longer name": (graph_of(helper.make_node("GRU", ["x"], ["y"], domain="ai.onnx")), "operator GRU"),
    "of com.microsoft": (
        graph_of(helper.make_node("BeamSearch", ["x"], ["y"], domain="com.microsoft"), domains=("", "com.microsoft")),
        "operator BeamSearch of com.microsoft",
    ),
    "of another list": (graph_of(helper.make_node("MatMulNBits", ["x"], ["y"])), "operator MatMulNBits; allowed"),
    "of machine learning": (graph_of(helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml")), "ai.onnx.ml"),
    "of a library": (graph_of(helper.make_node("Add", ["x", "x"], ["y"], domain="own.ops")), "domain own.ops"),
    "a domain nobody uses": (graph_of(domains=("", "own.ops")), "domain own.ops"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_operator_that_is_not_listed_is_refused_by_name(name: str) -> None:
    model, error = REFUSED[name]
    with pytest.raises(ValueError, match=error):
        refuse_others(model)


def test_listed_operators_pass() -> None:
    for domain, names in ALLOWED.items():
        refuse_others(graph_of(*(helper.make_node(name, ["x"], ["y"], domain=domain) for name in names)))


def test_listed_operators_are_operators() -> None:
    """A name that is misspelt would allow nothing. Two are ONNX Runtime's own in ONNX's domain, or newer than onnx."""
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert ALLOWED[""] - known <= {"SimplifiedLayerNormalization", "RMSNormalization", "Attention", "Swish"}


def test_no_session_is_opened_for_it(genai: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(genai, tmp_path / "model"))
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    model.graph.node.append(helper.make_node("Unique", ["input_ids"], ["unique"]))
    (folder / "model.onnx").write_bytes(model.SerializeToString())

    opened: list[object] = []
    session = onnxruntime.InferenceSession

    def recording(path: str, *given: Any, **options: Any) -> Any:
        opened.append(path)
        return session(path, *given, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recording)
    with pytest.raises(BackendError, match="operator Unique") as caught:
        ReadyModel(folder / "model.onnx", "fast", capacity=128)
    assert "Export it again" in str(caught.value)
    assert not opened
    ReadyModel(genai / "model.onnx", "fast", capacity=128)
    assert opened == [str(genai / "model.onnx")]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_a_folder_of_links_is_read(genai: Path, tmp_path: Path) -> None:
    """The hub's cache keeps files under their hashes, in one folder, and links to them."""
    blobs = Path(shutil.copytree(genai, tmp_path / "blobs"))
    (tmp_path / "snapshot").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / "snapshot" / name).symlink_to(blobs / name)
    assert read(tmp_path / "snapshot" / "model.onnx").data
    assert ReadyModel(tmp_path / "snapshot" / "model.onnx", "fast", capacity=128).vocab_size == 512
