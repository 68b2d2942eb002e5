"""A graph of fixed shapes: what it computes, and which files and inputs are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.backends.openvino.runtime import ops, ov
from edgespec.backends.openvino.static_graph import OpenVINOStaticGraph
from edgespec.errors import BackendError
from tests.test_programs import PROGRAMS

WEIGHTS = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)


def wide(x: Any) -> Any:
    """Five tensors of 2**29 elements, each as large as one may be."""
    at = ops.broadcast(x, [1 << 15, 1 << 14])
    for _ in range(4):
        at = ops.relu(at)
    return ops.reduce_sum(at, [0, 1])


def named(node: Any, name: str) -> Any:
    node.output(0).get_tensor().set_names({name})
    return node


def head() -> ov.Model:
    """logits = state @ WEIGHTS, and token + 1."""
    state = named(ops.parameter([2, 4], np.float32, name="state"), "state")
    token = named(ops.parameter([1], np.int32, name="token"), "token")
    logits = named(ops.result(ops.matmul(state, ops.constant(WEIGHTS), False, False)), "logits")
    after = named(ops.result(ops.add(token, ops.constant(np.int32(1)))), "after")
    return ov.Model([logits, after], [state, token], "head")


def of(make: Callable[[Any], Any], shape: list[int] | None = None, kind: Any = np.float32) -> ov.Model:
    """A graph of one operation."""
    x = named(ops.parameter([1] if shape is None else shape, kind, name="x"), "x")
    return ov.Model([named(ops.result(make(x.output(0))), "y")], [x], "one")


def state() -> ov.Model:
    """y = the sum of all x so far."""
    x = named(ops.parameter([1], np.float32, name="x"), "x")
    held = ops.read_value(x, "held", np.float32, [1])
    total = ops.assign(ops.add(held, x), "held")
    return ov.Model([named(ops.result(held), "y")], [total], [x], "state")


def write(model: ov.Model, folder: Path) -> Path:
    xml = folder / "openvino_model.xml"
    ov.serialize(model, xml)
    return xml


def opened(model: ov.Model, folder: Path) -> OpenVINOStaticGraph:
    return OpenVINOStaticGraph(ov.Core(), write(model, folder))


def test_it_computes_what_the_graph_says(tmp_path: Path) -> None:
    graph = opened(head(), tmp_path)
    assert graph.inputs == {"state": (2, 4), "token": (1,)}
    assert graph.outputs == {"logits": (2, 6), "after": (1,)}
    states = np.arange(8, dtype=np.float64).reshape(2, 4)  # converted to the type of the input
    found = graph.run({"token": np.array([7]), "state": states})
    np.testing.assert_allclose(found["logits"], states @ WEIGHTS, rtol=1e-4)
    assert found["after"].tolist() == [8]
    again = graph.run({"token": np.array([1]), "state": 2 * states})
    np.testing.assert_allclose(again["logits"], 2 * states @ WEIGHTS, rtol=1e-4)
    assert again["after"].tolist() == [2], "the run before left something"


@pytest.mark.parametrize(
    "inputs",
    [
        {"token": np.zeros(1, np.int32)},
        {"token": np.zeros(1, np.int32), "state": np.zeros((2, 4)), "more": np.zeros(1)},
        {"token": np.zeros(1, np.int32), "state": np.zeros((1, 4))},
        {"token": np.zeros((), np.int32), "state": np.zeros((2, 4))},
        {"token": np.zeros(1, np.float32), "state": np.zeros((2, 4))},
        {"token": np.zeros(1, np.int32), "state": np.array([["a"] * 4] * 2)},
    ],
    ids=["missing", "extra", "shape", "scalar", "float for an integer", "text"],
)
def test_other_inputs_are_refused(tmp_path: Path, inputs: dict[str, Any]) -> None:
    graph = opened(head(), tmp_path)
    with pytest.raises(BackendError, match="allowed: "):
        graph.run(inputs)


REFUSED: dict[str, tuple[Callable[[], ov.Model], str]] = {
    "dynamic input": (lambda: of(ops.relu, [-1]), "has the shape"),
    "shape of the data": (lambda: of(lambda x: ops.convert(ops.non_zero(x), "i32")), "NonZero.*has the shape"),
    "state": (state, "keeps a state"),
    "huge inside": (
        lambda: of(lambda x: ops.reduce_sum(ops.broadcast(x, [1 << 15, 1 << 15]), [0, 1])),
        "allowed: 536870912 elements",
    ),
    "huge in all": (lambda: of(wide), r"its tensors have 268\d{7} elements; allowed: 2147483\d{3}"),
    "huge output": (lambda: of(lambda x: ops.broadcast(x, [1 << 13, 1 << 13])), "allowed: 16777216 elements"),
    "type": (lambda: of(ops.relu, kind=np.float16), "x is of type f16; allowed: f32, i32, i64"),
    **{kind: (partial(of, make), "is a program") for kind, make in PROGRAMS.items()},
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_graphs_are_refused(tmp_path: Path, case: str) -> None:
    make, words = REFUSED[case]
    with pytest.raises(BackendError, match=words) as caught:
        opened(make(), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_port_needs_one_name(tmp_path: Path) -> None:
    nameless = of(ops.relu)
    nameless.output(0).get_tensor().set_names(set())
    with pytest.raises(BackendError, match="allowed: one name"):
        opened(nameless, tmp_path)


@pytest.mark.parametrize("ending", [".xml", ".bin"])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, ending: str) -> None:
    xml = write(head(), tmp_path)
    cut = xml.with_suffix(ending)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(BackendError, match="damaged"):
        OpenVINOStaticGraph(ov.Core(), xml)


@pytest.mark.parametrize("ending", [".xml", ".bin"])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, ending: str) -> None:
    xml = write(head(), tmp_path)
    xml.with_suffix(ending).unlink()
    with pytest.raises(BackendError, match="damaged"):
        OpenVINOStaticGraph(ov.Core(), xml)
