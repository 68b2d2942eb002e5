"""Do the weights of an untrusted ONNX graph lie where they may, and are they of the sizes that the graph says?

ONNX Runtime reads memory by what a graph says of its weights, so each number is held against the others and the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

MOST_COLUMNS = 1 << 16
"""keys of all heads of a layer, in numbers; the largest models have 16,384"""
_LARGEST_VOCABULARY = 1 << 24
_PLACE = {"location", "offset", "length", "checksum"}
"""what a tensor may say of its place in another file"""


def files_with_weights(path: Path, graph: Any, allowed: Sequence[Path]) -> list[Path]:
    """The files beside the graph that hold its weights. Each tensor that lies there has to fit in. Raises ValueError.

    path: of the graph. allowed: files of its folder.
    """
    import onnx

    bits = {onnx.TensorProto.DataType.Value(name): size for name, size in _BITS.items()}
    by_name = {file.name: file for file in allowed}
    sizes: dict[str, int] = {}
    for tensor in graph.initializer:
        if not tensor.external_data and not tensor.data_location:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        # Another key may name bytes that the engine takes for weights it has packed itself, unchecked.
        if len(said) != len(tensor.external_data) or not said.keys() <= _PLACE:
            raise ValueError(f"weights {tensor.name[:100]} say more than where they lie")
        location = said.get("location", "")
        if location not in by_name:
            raise ValueError(f"weights in the file {location[:100]!r}; allowed: one of {' and '.join(by_name)}")
        if location not in sizes:
            sizes[location] = _size_of(by_name[location], path)
        if tensor.data_type not in bits or min(tensor.dims, default=0) < 0:
            raise ValueError(f"weights {tensor.name[:100]} of an unknown type")
        size = -(-prod(tensor.dims) * bits[tensor.data_type] // 8)
        offset, length = (_count(said.get(key, other)) for key, other in (("offset", "0"), ("length", str(size))))
        if length != size or offset + size > sizes[location]:
            raise ValueError(f"{location} was cut short, or weights {tensor.name[:100]} are not of the size they say")
    return [by_name[name] for name in sizes]


def check_products(graph: Any, constants: Mapping[str, Any]) -> None:
    """Products with compressed weights: as many codes and steps as they say. Raises ValueError."""
    import onnx

    def held(name: str) -> tuple[int, int] | None:
        """How many numbers a constant has, and their type; None if there is none."""
        tensor = constants.get(name)
        return None if not name else (-1, 0) if tensor is None else (prod(tensor.dims), tensor.data_type)

    byte, *floating = map(onnx.TensorProto.DataType.Value, ("UINT8", "FLOAT", "FLOAT16", "BFLOAT16"))
    for node in graph.node:
        if node.op_type != "MatMulNBits":
            continue
        options = whole_numbers(node)
        columns, rows, bits, block = (options.get(key, 0) for key in ("K", "N", "bits", "block_size"))
        if not (0 < columns < 1 << 31 and 0 < rows < 1 << 31 and bits in (2, 4, 8) and 16 <= block <= 1 << 16):
            raise ValueError(f"a product in {bits} bits with blocks of {block}")
        blocks = -(-columns // block)
        _, codes, steps, zeros, order, bias = inputs_of(node, 6)
        # Zero points in bytes are packed like codes, and others are not.
        possible: tuple[set[tuple[int, int] | None], ...] = (
            {(rows * blocks * (block * bits // 8), byte)},
            {(rows * blocks, kind) for kind in floating},
            {None, (rows * -(-blocks * bits // 8), byte), *((rows * blocks, kind) for kind in floating)},
            {None, *((rows, kind) for kind in floating)},
        )
        given = [held(name) for name in (codes, steps, zeros, bias)]
        if order or any(part not in allowed for part, allowed in zip(given, possible, strict=True)):
            raise ValueError("a product with compressed weights of another size or type than it says")


def vocabulary(logits: Any) -> int:
    """How many logits a row has. Raises ValueError."""
    size = port_sizes(logits, "FLOAT", 3)[2]
    if size is None or not 0 < size <= _LARGEST_VOCABULARY:
        raise ValueError("it does not say how many logits it returns")
    return size


def port_sizes(port: Any, kind: str, rank: int) -> list[int | None]:
    """The sizes of what goes in or out, None for one that varies. Raises ValueError for another type or rank."""
    import onnx

    tensor = port.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    given = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if (given, len(sizes)) != (kind, rank):
        raise ValueError(f"{port.name} is {given} in {len(sizes)} dimensions; allowed: {kind} in {rank}")
    return sizes


def inputs_of(node: Any, count: int) -> list[str]:
    """The names of its first ones; "" for those that are left out."""
    return [*node.input, *[""] * count][:count]


def whole_numbers(node: Any) -> dict[str, int]:
    """The whole numbers among the attributes of an operator."""
    return {option.name: int(option.i) for option in node.attribute}


def _size_of(file: Path, graph: Path) -> int:
    """Bytes of a file in the folder of the graph, or where the graph itself lies: a cache may consist of links."""
    if file.resolve().parent not in (graph.parent.resolve(), graph.resolve().parent):
        raise ValueError(f"{file.name} is a link to a file outside the folder")
    if not file.is_file():
        raise ValueError(f"{file.name} is missing")
    return file.stat().st_size


_BITS = (
    dict.fromkeys(("INT4", "UINT4"), 4)
    | dict.fromkeys(("BOOL", "INT8", "UINT8"), 8)
    | dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16)
    | dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32)
    | dict.fromkeys(("DOUBLE", "INT64", "UINT64"), 64)
)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text, re.ASCII):
        raise ValueError(f"a place of weights is {text[:40]!r}")
    return int(text)
