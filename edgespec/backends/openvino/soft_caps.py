"""Attention whose scores are soft-capped (``cap * tanh(score / cap)``; Gemma 2), found in a graph.

Paged attention of OpenVINO knows no cap, so a graph spells such an attention out. ONNX Runtime's operator does know
one. For it the spelt-out form becomes one attention again, beside the caps that were in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgespec.backends.openvino.runtime import ops


def spelt_out(xml: Path) -> bool:
    """Whether an IR has capped attention, told without reading its weights."""
    text = xml.read_bytes()
    return b'type="ScaledDotProductAttention"' not in text and b'type="Tanh"' in text


def fold(model: Any) -> list[float]:
    """Make each capped attention one operator, in place, without its cap. The caps, in the order of the layers."""
    caps = []
    for node in model.get_ordered_ops():
        found = _capped(node)
        if found is not None:
            query, key, value, mask, scale, cap = found
            whole = ops.scaled_dot_product_attention(query, key, value, mask, np.float32(scale))
            whole.set_friendly_name(node.get_friendly_name())
            node.output(0).replace(whole.output(0))
            caps.append(cap)
    return caps


def _capped(node: Any) -> tuple[Any, Any, Any, Any, float, float] | None:
    """``softmax(cap * tanh(query @ key.T * scale / cap) + mask) @ value``"""
    weights = _input(node, "MatMul", "Softmax")
    total = None if weights is None else _input(weights, "Softmax", "Add")
    grown = None if total is None else _input(total, "Add", "Multiply")
    bent = None if grown is None else _input(grown, "Multiply", "Tanh")
    shrunk = None if bent is None else _input(bent, "Tanh", "Multiply")
    if total is None or grown is None or shrunk is None:
        return None
    factor, product = 1.0, shrunk
    while product is not None and product.get_type_name() == "Multiply":
        factor *= _number(product.input_value(1))
        product = product.input_value(0).get_node()
    if product.get_type_name() != "MatMul" or not product.get_attributes()["transpose_b"]:
        return None
    cap = _number(grown.input_value(1))
    query, key = product.input_values()
    return query, key, node.input_value(1), total.input_value(1), factor * cap, cap


def _input(node: Any, kind: str, below: str) -> Any:
    """The first input of a node of this kind, if it is of that one."""
    first = node.input_value(0).get_node() if node.get_type_name() == kind else None
    return first if first is not None and first.get_type_name() == below else None


def _number(value: Any) -> float:
    node = value.get_node()
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return float(np.asarray(node.get_data()).reshape(-1)[0])
