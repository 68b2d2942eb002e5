"""A graph that loops or branches by itself is no causal language model: it is refused before it can run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgespec
from edgespec import bundle
from edgespec.backends.openvino.graph import paged_graph
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.backends.openvino.runtime import ops, ov
from edgespec.backends.openvino.settings import Settings
from edgespec.errors import BackendError
from tests import tiny_gguf


def loop(x: Any) -> Any:
    """For ever, as the condition is true in the end of each round."""
    inside = ops.parameter([1], np.float32)
    body = ov.Model([ops.constant(True), ops.add(inside, ops.constant(np.float32(1)))], [inside], "body")
    node = ops.loop(ops.constant(-1), ops.constant(True))
    node.set_function(body)
    node.set_special_body_ports([-1, 0])
    node.set_merged_input(inside, x, body.results[1].output(0))
    return node.get_iter_value(body.results[1].output(0), -1)


def branch(x: Any) -> Any:
    node = ops.if_op(ops.constant(True))
    outputs = []
    for set_body in (node.set_then_body, node.set_else_body):
        inside = ops.parameter([1], np.float32)
        body = ov.Model([ops.relu(inside)], [inside], "body")
        set_body(body)
        outputs.append((inside, body.results[0]))
    node.set_input(x, outputs[0][0], outputs[1][0])
    return node.set_output(outputs[0][1], outputs[1][1])


def iterator(x: Any) -> Any:
    inside = ops.parameter([1], np.float32)
    body = ov.Model([ops.relu(inside)], [inside], "body")
    node = ops.tensor_iterator()
    node.set_body(body)
    node.set_sliced_input(inside, x, 0, 1, 1, -1, 0)
    return node.get_iter_value(body.results[0].output(0), -1)


PROGRAMS = {"Loop": loop, "If": branch, "TensorIterator": iterator}


def write(folder: Path, make: Callable[[Any], Any]) -> Path:
    ids = ops.parameter([1], np.float32, name="input_ids")
    ids.output(0).get_tensor().set_names({"input_ids"})
    logits = ops.result(ops.abs(make(ids.output(0))))
    logits.output(0).get_tensor().set_names({"logits"})
    xml = folder / bundle.IR_FILE
    ov.serialize(ov.Model([logits], [ids], "program"), xml)
    return xml


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_is_refused(tmp_path: Path, kind: str) -> None:
    xml = write(tmp_path, PROGRAMS[kind])
    assert f'type="{kind}"' in xml.read_text(encoding="utf-8")
    with pytest.raises(BackendError, match=f"is a program.*; got operation {kind}") as caught:
        paged_graph(ov.Core(), xml)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_without_a_length_is_refused(tiny_ir: Path, tmp_path: Path) -> None:
    model = ov.Core().read_model(tiny_ir)
    head = model.output("logits").get_node().input_value(0).get_node()
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).get_node()
    first, step = (ops.constant(np.array([number], np.int64)) for number in (0, 1))
    length = ops.shape_of(model.input("input_ids").get_node(), "i64")
    stop = ops.add(ops.gather(length, first, ops.constant(0, np.int64)), ops.constant(np.array([50], np.int64)))
    rows = ops.slice(head.input_value(1), first, stop, step, first)
    head.input(1).replace_source_output(rows.output(0))
    ov.serialize(model, xml := tmp_path / bundle.IR_FILE)
    with pytest.raises(BackendError, match="not a causal language model"):
        OpenVINOPagedModel(ov.Core(), xml, "CPU", Settings.make("CPU", None), capacity=64)


def test_a_folder_with_a_program_is_refused_by_load(tmp_path: Path) -> None:
    from edgespec.gguf.convert import convert, read_header

    (tmp_path / "ir").mkdir()
    convert(read_header(tiny_gguf.write(tmp_path / "x.gguf")), folder := tmp_path / "ir", name="x", source="x")
    (folder / bundle.MANIFEST).unlink()
    write(folder, loop)
    with pytest.raises(BackendError, match="got operation Loop"):
        edgespec.load(folder, backend="openvino", num_draft_tokens=0)
