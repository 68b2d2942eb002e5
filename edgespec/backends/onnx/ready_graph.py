"""Is an ONNX file of a stranger's the graph of a causal language model, and which one?

It is read without its weights, and refused unless every part of it is of a known kind: operators that language models
are exported with (``operators``), weights that lie beside it in one file (``graph_weights``), and keys and values that
are handed on by attention. ONNX Runtime writes to memory by what some numbers in the graph say: those are held against
each other here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from math import prod
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
from edgespec.manifest import data_files

AGAIN = "export it again, with onnxruntime-genai's model builder (-p int4 -e cpu) or optimum-cli"
_PAST = re.compile(r"past_key_values\.(0|[1-9][0-9]{0,3})\.(key|value)\Z")
_TOKENS = ("input_ids", "attention_mask", "position_ids")
_PASSING = ("Cast", "Identity", "Reshape", "Mul")
"""operators between attention and the product behind it: they leave its columns as they are"""


@dataclass(frozen=True)
class ReadyGraph:
    """shapes: heads and size of a head of each ``past_key_values`` input. shared: past and present are one tensor, and
    attention writes into it; else present is another one, longer by the new rows. positions: rows of the rotary tables,
    if there are any. data: the file with the weights, if they are not in the graph's own."""

    inputs: frozenset[str]
    shapes: dict[str, tuple[int, int]]
    vocab_size: int
    shared: bool
    positions: int | None
    data: Path | None


def read(path: Path) -> ReadyGraph:
    """Raises BackendError for whatever is no such graph, with the first reason."""
    import onnx

    with foreign(BackendError, f"{path} is not an ONNX model", hint=AGAIN):
        model = onnx.ModelProto.FromString(without_weights(path))
    with foreign(BackendError, f"{path} is not the graph of a known language model", hint=AGAIN):
        refuse_others(model)
        data = files_with_weights(path, model.graph, data_files(path))
        if len(data) > 1:
            raise ValueError(f"weights in {' and in '.join(file.name for file in data)}; allowed: one file")
        return _Reader(model.graph).read(data[0] if data else None)


def present_of(past: str) -> str:
    return past.replace("past_key_values", "present")


class _Reader:
    """Follows keys, values and lengths through the graph. Raises ValueError."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._makers: dict[str, Any] = {}
        self._readers: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            self._makers |= dict.fromkeys(filter(None, node.output), node)
            for name in node.input:
                self._readers[name].append(node)
            if node.op_type == "Constant":
                values = (option.t for option in node.attribute if option.name == "value")
                self._constants |= dict(zip(node.output, values, strict=False))
        self._inputs = {port.name: port for port in graph.input if port.name not in self._constants}
        self._outputs = {port.name: port for port in graph.output}

    def read(self, data: Path | None) -> ReadyGraph:
        pasts = [name for name in self._inputs if _PAST.match(name)]
        layers = len(pasts) // 2
        expected = {f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")}
        unknown = self._inputs.keys() - set(_TOKENS) - expected
        if not layers or unknown or expected - self._inputs.keys():
            raise ValueError(f"its inputs are {', '.join(self._inputs)[:200]}")
        missing = ({"input_ids", "attention_mask"} - self._inputs.keys()) | (
            {"logits", *map(present_of, pasts)} - self._outputs.keys()
        )
        if missing:
            raise ValueError(f"it has no {min(missing)}")
        for name in self._inputs.keys() & set(_TOKENS):
            port_sizes(self._inputs[name], "INT64", 2)
        vocab_size = vocabulary(self._outputs["logits"])
        kinds = {self._attention(name).op_type for name in pasts}
        if len(kinds) > 1:
            raise ValueError("its layers hand on keys and values in different ways")
        shared = kinds == {"GroupQueryAttention"}
        shapes = {name: (self._shared if shared else self._joined)(name) for name in pasts}
        check_products(self._graph, self._constants)
        return ReadyGraph(frozenset(self._inputs), shapes, vocab_size, shared, self._positions(), data)

    def _attention(self, past: str) -> Any:
        """The operator that reads it. Others may ask for its shape."""
        nodes = [node for node in self._readers[past] if node.op_type != "Shape"]
        if len(nodes) != 1 or nodes[0].op_type not in ("GroupQueryAttention", "Concat"):
            raise ValueError(f"{past} is read by {', '.join(node.op_type for node in nodes) or 'nothing'}")
        return nodes[0]

    def _joined(self, past: str) -> tuple[int, int]:
        """The new rows are put behind it, and that is handed on."""
        node = self._attention(past)
        axis = whole_numbers(node).get("axis")
        if axis not in (2, -2) or list(node.output) != [present_of(past)] or list(node.input)[:1] != [past]:
            raise ValueError(f"{past} is not handed on as it was, with new rows behind it")
        _, heads, _, size = port_sizes(self._inputs[past], "FLOAT", 4)
        return self._shape(past, heads, size)

    def _shared(self, past: str) -> tuple[int, int]:
        """Attention writes the new rows into it, where the length of the mask says."""
        node = self._attention(past)
        options = whole_numbers(node)
        key, value = (f"{past.rpartition('.')[0]}.{part}" for part in ("key", "value"))
        names = inputs_of(node, 10)
        if names[3:5] != [key, value] or list(node.output)[1:3] != [present_of(key), present_of(value)]:
            raise ValueError(f"{past} is not handed on by the attention that reads it")
        if not self._counts_mask(names[5], names[6]) or names[9] not in ("", "position_ids"):
            raise ValueError(f"the attention that reads {past} does not go by the length of attention_mask")
        _, heads, _, size = port_sizes(self._inputs[past], "FLOAT", 4)
        if heads != options.get("kv_num_heads"):
            raise ValueError(f"{past} has another number of heads than the attention that reads it")
        return self._shape(past, heads, size or self._columns(node.output[0]) // max(1, options.get("num_heads", 1)))

    def _shape(self, past: str, heads: int | None, size: int | None) -> tuple[int, int]:
        if not heads or not size or not 0 < heads * size <= MOST_COLUMNS:
            raise ValueError(f"{past} does not say how large its heads are")
        return heads, size

    def _columns(self, name: str) -> int:
        """Of what attention gives: the weights that it is multiplied with have as many rows."""
        for _ in range(8):
            for node in self._readers[name]:
                if node.op_type == "MatMulNBits":
                    return int(whole_numbers(node).get("K", 0))
                if node.op_type == "MatMul" and node.input[1] in self._constants:
                    return int(self._constants[node.input[1]].dims[0])
            onward = [node for node in self._readers[name] if node.op_type in _PASSING]
            if not onward:
                break
            name = onward[0].output[0]
        return 0

    def _counts_mask(self, last: str, total: str) -> bool:
        """last: the sum of the mask less one; total: its length. The mask is all ones here."""
        below = self._through(last, "Sub", 1)
        summed = below is not None and self._maker(below, "ReduceSum")
        counted = self._through(total, "Gather", 1)
        shape = counted is not None and self._maker(counted, "Shape")
        return bool(
            summed
            and shape
            and summed.input[0] == "attention_mask"
            and (len(summed.input) < 2 or self._number(summed.input[1]) == 1)
            and list(shape.input) == ["attention_mask"]
            and not shape.attribute
        )

    def _through(self, name: str, kind: str, number: int) -> str | None:
        """The first input of an operator with this number as its second, as 32-bit integers perhaps."""
        if cast := self._maker(name, "Cast"):
            if whole_numbers(cast).get("to") not in (6, 7):
                return None
            name = cast.input[0]
        node = self._maker(name, kind)
        return node.input[0] if node and self._number(node.input[1]) == number else None

    def _maker(self, name: str, kind: str) -> Any:
        node = self._makers.get(name)
        return node if node is not None and node.op_type == kind else None

    def _number(self, name: str) -> int | None:
        from onnx import numpy_helper

        tensor = self._constants.get(name)
        if tensor is None or tensor.external_data or prod(tensor.dims) != 1:
            return None
        return int(numpy_helper.to_array(tensor).reshape(-1)[0])

    def _positions(self) -> int | None:
        """How many the rotary tables have: behind them is other memory."""
        rows = []
        for node in self._graph.node:
            tables: list[str] = []
            if node.op_type == "GroupQueryAttention" and whole_numbers(node).get("do_rotary"):
                tables = inputs_of(node, 9)[7:]
            elif node.op_type == "RotaryEmbedding":
                tables = inputs_of(node, 4)[2:]
                if node.domain != "com.microsoft" or node.input[1] != "position_ids":
                    raise ValueError("rotary embedding that does not go by position_ids")
            for name in tables:
                table = self._constants.get(name)
                if table is None or len(table.dims) != 2:
                    raise ValueError("rotary tables that are not constants")
                rows.append(int(table.dims[0]))
        return min(rows, default=None)
