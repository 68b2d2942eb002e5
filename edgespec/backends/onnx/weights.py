"""The numbers of an IR's constants, and of compressed matrices the codes, as ``backends.onnx.graph`` writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.openvino.merge_matmuls import array_of
from edgespec.errors import ConversionError

_BLOCK_SIZES = (32, 16)  # small ones keep one large activation from coarsening its neighbours' steps


class NoONNXForm(ConversionError):
    """A model with something in it that has no counterpart: so it will be the next time."""


def unsupported(what: str) -> NoONNXForm:
    return NoONNXForm("this model has no ONNX form", got=what, hint="run it on OpenVINO: --backend openvino")


@dataclass(frozen=True)
class Compressed:
    """A compressed matrix: weight ``[i, j] = (code - zero) * step`` of its block."""

    codes: NDArray[Any]
    """(rows, blocks, size) uint8"""
    zeros: NDArray[Any]
    """(rows, blocks) uint8"""
    steps: NDArray[Any]
    """(rows, blocks) f32"""
    bits: int

    @property
    def middle(self) -> int:
        """Zero point where none is named."""
        return 1 << (self.bits - 1)


def weights_of(node: Any) -> Compressed | NDArray[Any] | None:
    """The numbers of a constant or of a subgraph of constants that decompresses one; None if it is neither."""
    kind = node.get_type_name()
    if kind in ("Convert", "Reshape"):
        below = weights_of(node.input_value(0).get_node())
        shape = node.get_output_partial_shape(0)
        if below is None or isinstance(below, Compressed) or kind == "Convert" or not shape.is_static:
            return below
        reshaped: NDArray[Any] = below.reshape(node.get_output_shape(0))
        return reshaped
    if kind == "Constant":
        if node.get_element_type().get_type_name() not in ("f32", "f16", "bf16"):
            return None
        return np.array(node.get_data(dtype=np.float32))  # bfloat16 is float16 to numpy, unless told
    if kind != "Multiply":
        return None
    shifted, steps = (node.input_value(i).get_node() for i in (0, 1))
    zeros: Any = None
    if shifted.get_type_name() == "Subtract":
        shifted, zeros = (shifted.input_value(i).get_node() for i in (0, 1))
    codes = constant_below(shifted)
    if codes is None or codes.get_element_type().get_type_name() not in ("u8", "i8", "u4"):
        return None
    return _blocks(codes, constant_below(zeros) if zeros is not None else None, constant_below(steps))


def _blocks(codes_node: Any, zeros_node: Any, steps_node: Any) -> Compressed:
    kind = codes_node.get_element_type().get_type_name()
    bits = 4 if kind == "u4" else 8
    codes = array_of(codes_node)
    rows, inputs = codes.shape[0], int(np.prod(codes.shape[1:]))
    groups = codes.shape[1] if codes.ndim == 3 else 1
    zeros = np.zeros((1, 1)) if zeros_node is None else np.array(array_of(zeros_node), np.float32)
    if kind == "i8":
        codes, zeros = (codes.astype(np.int16) + 128).astype(np.uint8), zeros + 128
    if (zeros != np.rint(zeros)).any():
        raise unsupported("weights whose zero points are no whole numbers")
    size = inputs // groups
    block = size if groups > 1 else next((block for block in _BLOCK_SIZES if inputs % block == 0), 0)
    if block < 16 or block & (block - 1):
        raise unsupported(f"weights in groups of {size}")

    def of_blocks(values: NDArray[Any]) -> NDArray[Any]:
        flat = values.reshape(-1, groups) if values.size > 1 else np.full((rows, groups), values.reshape(-1)[0])
        return np.repeat(flat, inputs // block // groups, axis=1)

    return Compressed(
        codes.reshape(rows, -1, block),
        of_blocks(zeros).astype(np.uint8),
        of_blocks(np.array(array_of(steps_node), np.float32)),
        bits,
    )


def nibbles(codes: NDArray[Any]) -> NDArray[Any]:
    """Two 4-bit codes a byte, along the last axis, the first in the low half."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], -1)
    packed: NDArray[Any] = codes[..., 0::2] | codes[..., 1::2] << 4
    return packed


def constant_below(node: Any) -> Any:
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def origin(node: Any) -> str:
    """Name of the constant that a weight is made of: one for all who use it."""
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return str(node.get_name())


def number(value: Any) -> float | None:
    """Of a constant that holds one."""
    node = constant_below(value.get_node())
    return None if node is None or node.get_data().size != 1 else float(node.get_data().reshape(-1)[0])
