"""Hidden states of an ONNX graph's layers, as outputs that the session is made with.

They are values of the graph already. So the file on the disk stays as it is, and only its message in memory names more
outputs: a protobuf message grows by what is appended to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgespec.backends.layer_states import chosen, states_before_attention
from edgespec.backends.onnx.skeleton import without_weights

_KEYS = re.compile(r"past_key_values\.[0-9]+\.key\Z", re.ASCII)
"""inputs that one attention each reads"""
_PRODUCTS = ("MatMul", "MatMulNBits", "Gemm")
_AFTER_HEAD = ("Identity", "Cast", "Mul", "Div", "Add", "Sub", "Tanh", "Transpose", "Reshape")
"""operators between the output head and the logits"""
_SKIP_NORMS = ("SkipSimplifiedLayerNormalization", "SkipLayerNormalization")
_SUM = 3
"""which output of theirs is the sum that they norm"""


@dataclass(frozen=True)
class Values:
    """names: of the value that holds the hidden states of a layer. columns: of each."""

    names: dict[int, str]
    columns: int


def values_of(path: Path, layers: Sequence[int]) -> Values:
    """Where the hidden states of some layers are (see ``types.Hidden``).

    Raises NoSuchLayer, or ValueError for a file that is no such graph.
    """
    import onnx

    graph = onnx.ModelProto.FromString(without_weights(path)).graph
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    last = _before_head(graph, makers)
    names = chosen([*_before_attention(graph, makers, last), last], layers)
    norm = graph.node[makers[last]]
    scales = [tensor.dims[0] for tensor in graph.initializer if tensor.name in norm.input and len(tensor.dims) == 1]
    if not scales:
        raise ValueError(f"no norm before the output head, but {norm.op_type}")
    return Values(names, int(scales[0]))


def with_outputs(path: Path, names: Iterable[str]) -> bytes:
    """The graph's file, with these values among what it returns."""
    import onnx

    more = onnx.ModelProto()
    for name in names:
        more.graph.output.add(name=name).type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return path.read_bytes() + more.SerializeToString()


def _before_attention(graph: Any, makers: dict[str, int], last: str) -> list[str]:
    """What each layer begins from."""
    read = {name for node in graph.node for name in node.input}
    sources: list[list[int]] = []  # of each node, those that carry the tokens to it; a shape carries none
    carries: list[bool] = []
    attentions = set()
    for place, node in enumerate(graph.node):
        above = [makers[name] for name in node.input if name in makers]
        if max(above, default=-1) >= place:
            raise ValueError("its operators are not in the order they run in")
        sources.append([source for source in above if carries[source]])
        carries.append(node.op_type != "Shape" and (bool(sources[place]) or "input_ids" in node.input))
        if carries[place] and any(_KEYS.match(name) for name in node.input):
            attentions.add(place)
    starts = states_before_attention(sources, attentions, makers[last])
    return [_state(graph.node[place], read) for place in starts]


def _state(node: Any, read: set[str]) -> str:
    outputs = list(node.output)
    has_sum = node.op_type in _SKIP_NORMS and outputs[_SUM:] and outputs[_SUM] in read
    return str(outputs[_SUM if has_sum else 0])


def _before_head(graph: Any, makers: dict[str, int]) -> str:
    """What the output head reads. In the graphs that edgespec writes, wanted rows are gathered from it first."""
    for node in graph.node:
        if "logits_rows" in node.input:
            return str(node.input[0])
    node = graph.node[makers["logits"]]
    while node.op_type not in _PRODUCTS:
        above = [makers[name] for name in node.input if name in makers]
        if node.op_type not in _AFTER_HEAD or not above:
            raise ValueError(f"no output head before the logits, but {node.op_type}")
        node = graph.node[above[0]]
    return str(node.input[0])
