"""Bytes of weights that a run of a model reads: all of them, but for tables of which it takes a few rows.

A head whose steps are unrolled reads a matrix at each of them.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from edgespec import Pipeline
from edgespec.backends.openvino.runtime import ov
from edgespec.hub.resolve import model_path

_PASSED_ON = {"Convert", "Subtract", "Multiply", "Reshape"}
"""how a compressed table comes to the operation that uses it"""


def bytes_read(xml: Path) -> int:
    """Of an OpenVINO model."""
    total = 0
    for node in ov.Core().read_model(xml).get_ops():
        if node.get_type_name() == "Constant":
            size = prod(node.get_output_shape(0)) * node.get_output_element_type(0).get_bitwidth() // 8
            total += size * _times_read(node)
    return total


def _times_read(node: Any) -> int:
    """How many operations read all of it. One that takes rows of it does not."""
    times = 0
    for port in node.output(0).get_target_inputs():
        reader = port.get_node()
        if reader.get_type_name() in _PASSED_ON:
            times += _times_read(reader)
        elif reader.get_type_name() != "Gather" or port.get_index() != 0:
            times += 1
    return times


def cost_in_bytes(pipeline: Pipeline, k: int) -> float:
    """c of ``Rounds.mbsu``: weights that drafting reads a token over those of the target's step. 0 for a drafter
    without any. A model reads its own once a token; a head, which drafts in one call, once in k."""
    target = target_bytes(pipeline)
    names = pipeline.drafter.name.split("+")
    own = [entry for entry in pipeline.bundle.manifest.drafters if entry.name in names and entry.model]
    times = {entry.name: 1.0 if entry.kind == "small_model" else 1 / k for entry in own}
    read = sum(_read(pipeline, entry.model) * times[entry.name] for entry in own)
    return (read or getattr(pipeline.draft_model, "weights_bytes", 0)) / target if target else 0.0


def target_bytes(pipeline: Pipeline) -> int:
    """That a step of the target reads; 0 if it is not known."""
    own: int = _read(pipeline, pipeline.bundle.manifest.target) or getattr(pipeline.target, "weights_bytes", 0)
    return own


def _read(pipeline: Pipeline, model: Any) -> int:
    """0 for a model that is no OpenVINO IR."""
    path = model_path(pipeline.bundle, model)
    return bytes_read(path) if path.suffix == ".xml" and path.is_file() else 0
