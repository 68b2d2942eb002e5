"""Is the ONNX form in a bundle a graph that edgespec writes (``backends.onnx.graph``)?

A bundle may come from a stranger, and ONNX Runtime writes to memory by what some numbers in a graph say. So it is read
without its weights, and refused unless each part is one that edgespec writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgespec.backends.onnx.graph_weights import (
    MOST_COLUMNS,
    check_products,
    files_with_weights,
    inputs_of,
    port_sizes,
    vocabulary,
    whole_numbers,
)
from edgespec.backends.onnx.operators import refuse_others
from edgespec.backends.onnx.skeleton import without_weights
from edgespec.errors import BackendError, foreign

AGAIN = "export the model again: edgespec export SOURCE --format both"
_SMALL = {
    "input_ids": ("INT64", 2),
    "logits_rows": ("INT64", 1),
    "attention_rows": ("INT64", 1),
    "own_rows": ("INT64", 1),
    "seqlens_k": ("INT32", 1),
    "total_sequence_length": ("INT32", 0),
}
_PAST = re.compile(r"past_key_values\.(?:0|[1-9][0-9]{0,3})\.key\Z", re.ASCII)
_ROTARY = re.compile(r"(?:cos|sin)\.(?:0|[1-9][0-9]{0,3})\Z", re.ASCII)


def read_form(path: Path, allowed: Sequence[Path]) -> list[Path]:
    """The files with the weights of a form. Raises BackendError for whatever is none, with the first reason.

    allowed: files beside the graph that may hold weights.
    """
    import onnx

    with foreign(BackendError, f"{path} is not an ONNX model", hint=AGAIN):
        model = onnx.ModelProto.FromString(without_weights(path))
    with foreign(BackendError, f"{path} is not a graph that edgespec writes", hint=AGAIN):
        refuse_others(model)
        found = files_with_weights(path, model.graph, allowed)
        check_products(model.graph, {tensor.name: tensor for tensor in model.graph.initializer})
        _check_ports(model.graph)
        return found


def _check_ports(graph: Any) -> None:
    """Each input and output is one of a form's; keys and values go through one attention each."""
    inputs = {port.name: port for port in graph.input}
    outputs = {port.name: port for port in graph.output}
    keys = [name for name in inputs if _PAST.match(name)]
    pasts = [name for key in keys for name in (key, _value_of(key))]
    rotary = [name for name in inputs if _ROTARY.match(name)]
    unknown = inputs.keys() ^ {*_SMALL, *pasts, *rotary} or outputs.keys() ^ {"logits", *map(_present_of, pasts)}
    if unknown or not keys:
        raise ValueError(f"what goes in or out is not what a form has: {', '.join(sorted(unknown))[:200]}")
    for name, (kind, rank) in _SMALL.items():
        port_sizes(inputs[name], kind, rank)
    for name in rotary:
        port_sizes(inputs[name], "FLOAT", 2)
    vocabulary(outputs["logits"])
    readers = [node for node in graph.node for name in node.input if name in pasts]
    attentions = {id(node): node for node in graph.node if node.op_type == "GroupQueryAttention"}
    if len(attentions) != len(keys) or any(id(node) not in attentions for node in readers):
        raise ValueError("keys and values are read by something else than one attention a layer")
    for node in attentions.values():
        _check_attention(node, inputs, pasts, rotary)


def _check_attention(node: Any, inputs: dict[str, Any], pasts: Sequence[str], rotary: Sequence[str]) -> None:
    _, _, _, key, value, last, total, *tables = inputs_of(node, 9)
    options = whole_numbers(node)
    handed_on = [_present_of(key), _present_of(value)]
    if key not in pasts or value != _value_of(key) or list(node.output)[1:] != handed_on or len(node.input) > 9:
        raise ValueError(f"attention {node.name[:100]} does not hand on the keys and values that it reads")
    if (last, total) != ("seqlens_k", "total_sequence_length"):
        raise ValueError(f"attention {node.name[:100]} goes by another length than the one it is given")
    if tables != (["", ""] if not options.get("do_rotary") else [name for name in tables if name in rotary]):
        raise ValueError(f"attention {node.name[:100]} has rotary tables of its own")
    for name in (key, value):
        _, heads, _, size = port_sizes(inputs[name], "FLOAT", 4)
        if not heads or not size or heads != options.get("kv_num_heads") or not 0 < heads * size <= MOST_COLUMNS:
            raise ValueError(f"{name} has other heads than the attention that reads it")


def _value_of(key: str) -> str:
    return key.removesuffix("key") + "value"


def _present_of(past: str) -> str:
    return past.replace("past_key_values", "present")
