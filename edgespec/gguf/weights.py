"""Put the weights of a GGUF file back into the IR that OpenVINO GenAI wrote from it.

A Q4_1 or Q4_K weight is ``code * step + minimum``. GenAI writes ``(code - zero) * step`` with ``zero`` rounded to four
bits: 9 % off in root mean square, and SmolLM2-135M then prefers another token at one position in four. Two ways back:

faithful: zero points in float16. Same size, and OpenVINO CPU still computes from four bits; but its integer kernels
    (VNNI) take integer zero points only, so those matrices are multiplied in float32 everywhere.
int8: every matrix in eight bits with one step and one zero point per row, like NNCF's INT8_ASYM.

GenAI: https://github.com/openvinotoolkit/openvino.genai/blob/master/src/cpp/src/gguf_utils/building_blocks.cpp
OpenVINO CPU: https://github.com/openvinotoolkit/openvino/blob/master/src/plugins/intel_cpu/src/nodes/executors/dnnl/dnnl_fullyconnected_primitive.cpp
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgespec.backends.openvino.merge_matmuls import array_of, merge_products
from edgespec.errors import ConversionError, foreign
from edgespec.gguf.dimensions import Dimensions
from edgespec.gguf.header import Header
from edgespec.gguf.tensors import Stored, read, sample
from edgespec.gguf.vectors import restore_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOSSY = ("Q4_1", "Q4_K")
"""ggml types that GenAI rounds"""


def requantize(xml: Path, header: Header, kind: Literal["int8", "faithful"], *, merge: bool = True) -> str:
    """Rewrite an IR that was made from a GGUF file. Returns the precision of its weights.

    merge: products that read the same activations become one, too (see ``backends.openvino.merge_matmuls``).

    Raises ConversionError: another file's IR, or it cannot be written; the IR is then as it was.
    """
    import numpy as np

    from edgespec.backends.openvino.runtime import ov

    # No warnings: what is not finite is refused where it is read.
    with (
        np.errstate(all="ignore"),
        foreign(ConversionError, f"cannot change the weights of {xml}", hint="is the disk full?"),
    ):
        stored = read(header)
        matrices = [tensor for tensor in stored if not tensor.vector]
        as_it_is = kind == "faithful" and not any(matrix.kind in (*LOSSY, "F32") for matrix in matrices)
        # Read, not mapped into memory: Windows replaces no mapped file.
        model = ov.Core().read_model(xml, config={"ENABLE_MMAP": False})
        for node in [] if as_it_is else _weights(model):
            matrix = _origin(node, matrices)
            if kind == "int8":
                node.output(0).replace(_int8(matrix).output(0))
            elif matrix.kind == "F32":
                node.output(0).replace(_float32(matrix).output(0))
            elif matrix.kind in LOSSY:
                _unround(node, matrix)
        changed = restore_vectors(model, Dimensions.of(header), stored)
        if merge:
            merge_products(model)
        if changed or merge or not as_it_is:
            _replace(model, xml)
    return "int8" if kind == "int8" else header.precision


def _float32(matrix: Stored) -> Any:
    from edgespec.backends.openvino.runtime import ops

    constant = ops.constant(matrix.rows(slice(None)))
    constant.set_friendly_name(matrix.name)
    return constant


def _int8(matrix: Stored) -> Any:
    """Nodes that give the matrix to half a step: zero is a code, and the step is rounded up so that no code is cut."""
    import numpy as np

    from edgespec.backends.openvino.runtime import ops

    codes = np.empty(matrix.shape, np.uint8)
    zeros = np.empty((matrix.shape[0], 1), np.uint8)
    steps = np.empty((matrix.shape[0], 1), np.float16)
    for part in matrix.parts():
        values = matrix.rows(part)
        low, high = values.min(1, keepdims=True, initial=0), values.max(1, keepdims=True, initial=0)
        exact = (high - low) / 255
        step = exact.astype(np.float16)
        step = np.where(step < exact, np.nextafter(step, np.float16(np.inf)), step)
        step = np.maximum(step, np.finfo(np.float16).smallest_subnormal)
        zero = np.rint(-low / step)
        codes[part] = np.clip(np.rint(values / step.astype(np.float32)) + zero, 0, 255)
        zeros[part], steps[part] = zero, step
    constant = ops.constant(codes)
    constant.set_friendly_name(matrix.name)
    shifted = ops.subtract(ops.convert(constant, "f16"), ops.convert(ops.constant(zeros), "f16"))
    return ops.convert(ops.multiply(shifted, ops.constant(steps)), "f32")


def _unround(node: Any, matrix: Stored) -> None:
    """Give the subgraph ``(code - zero) * step`` the zero points that make it the matrix."""
    import numpy as np

    from edgespec.backends.openvino.runtime import ops, ov

    multiply = _below(node, "Multiply")
    subtract = _below(multiply, "Subtract")
    codes, steps = array_of(_below(subtract, "Constant")), array_of(multiply.input_value(1).get_node())
    zeros = np.empty(steps.shape, np.float16)
    for part in matrix.parts():
        values = matrix.rows(part).reshape(codes[part].shape)
        step = steps[part].astype(np.float32)
        zero = (codes[part] - values / np.where(step == 0, 1, step)).mean(-1, keepdims=True)
        flat = (step == 0) | (np.abs(zero) > 60000)  # one number in the whole block
        np.copyto(codes[part], 0, where=flat)
        zeros[part] = np.where(flat, -1, zero)
        steps[part] = np.where(flat, values.mean(-1, keepdims=True), step)
    constant = ops.constant(codes, ov.Type.u4)
    constant.set_friendly_name(matrix.name)
    shifted = ops.subtract(ops.convert(constant, "f16"), ops.constant(zeros))
    multiply.output(0).replace(ops.multiply(shifted, ops.constant(steps)).output(0))


def _weights(model: Any) -> list[Any]:
    """Nodes that make a weight matrix out of constants. The embedding may be the output head too: it comes once."""
    found = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("MatMul", "Gather"):
            source = node.input_value(1 if node.get_type_name() == "MatMul" else 0)
            if len(source.get_partial_shape()) == 2 and _is_constant(source.get_node()):
                found[source.get_node().get_friendly_name()] = source.get_node()
    return list(found.values())


def _is_constant(node: Any) -> bool:
    kinds = ("Convert", "Reshape", "Subtract", "Multiply")
    if node.get_type_name() not in kinds:
        return bool(node.get_type_name() == "Constant")
    return all(_is_constant(value.get_node()) for value in node.input_values())


def _origin(node: Any, matrices: list[Stored]) -> Stored:
    """The GGUF matrix of a node, found by its numbers: GenAI's node names say nothing in some versions."""
    shape = tuple(node.get_output_shape(0))
    ours = sample(shape, lambda rows: _values(node, rows))
    alike = [(float(((matrix.sampled - ours) ** 2).sum()), matrix) for matrix in matrices if matrix.shape == shape]
    distance, matrix = min(alike, key=lambda pair: pair[0], default=(math.inf, None))
    if matrix is None or distance > 1e-3 * float((ours**2).sum()):
        raise ConversionError("the IR was not made from this GGUF file", got=f"weights {shape} that it lacks")
    return matrix


def _values(node: Any, rows: NDArray[Any]) -> Any:
    """Some rows of what a constant subgraph gives."""
    kind = node.get_type_name()
    if kind == "Constant":
        array = array_of(node)
        return array[rows].astype("float32") if array.shape[:1] > (1,) else array.astype("float32")
    first = _values(node.input_value(0).get_node(), rows)
    if kind in ("Convert", "Reshape"):
        return first.reshape(len(rows), -1) if kind == "Reshape" else first
    second = _values(node.input_value(1).get_node(), rows)
    return first - second if kind == "Subtract" else first * second


def _below(node: Any, kind: str) -> Any:
    while node.get_type_name() != kind:
        if not node.get_input_size():
            raise ConversionError("the IR is not as GenAI writes it", got=f"a four-bit weight without {kind}")
        node = node.input_value(0).get_node()
    return node


def _replace(model: Any, xml: Path) -> None:
    from edgespec.backends.openvino.runtime import ov

    made = xml.with_name("requantized.xml")
    try:
        ov.serialize(model, made)
        made.with_suffix(".bin").replace(xml.with_suffix(".bin"))
        made.replace(xml)
    finally:
        made.unlink(missing_ok=True)
        made.with_suffix(".bin").unlink(missing_ok=True)
