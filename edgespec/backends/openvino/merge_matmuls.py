"""Merge matrix products that read the same activations: query, key and value, and gate and up, become one each.

On CPU every matrix product has a price of its own, to hand its rows to the threads and again whenever their number
changes. One large product computes what several small ones do, bit for bit: 5 to 18 % less time for a forward of
SmolLM2-135M, and a third off a change of width (docs/log/engines.md).
"""

from __future__ import annotations

from collections import defaultdict
from math import prod
from typing import TYPE_CHECKING, Any

from edgespec.backends.openvino.runtime import ops, ov

_KINDS = ("Convert", "Reshape", "Subtract", "Multiply")
"""nodes between constants and a matrix product"""

if TYPE_CHECKING:
    from numpy.typing import NDArray


def merge_products(model: ov.Model) -> int:
    """Change the graph in place; returns how many products it has less.

    Left alone: products with a bias, which the engine adds while it multiplies, and weights of kinds that numpy cannot
    hold (4-bit signed, bf16, 8-bit floats).
    """
    import numpy as np

    groups: dict[tuple[str, int, str], list[Any]] = defaultdict(list)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and _rows_are_outputs(node) and not _has_bias(node):
            source, weights = node.input_value(0), node.input_value(1).get_node()
            shape = weights.get_output_partial_shape(0)
            if shape.is_static and len(shape) == 2 and shape[0].get_length() > 1:
                if not _is_stackable(weights, shape[0].get_length()):
                    continue
                groups[source.get_node().get_name(), source.get_index(), _form(weights)].append(node)
    fewer = 0
    for products in groups.values():
        if len(products) < 2:
            continue
        sizes = [product.input_value(1).get_shape()[0] for product in products]
        weights = _stacked([product.input_value(1).get_node() for product in products])
        merged = ops.matmul(products[0].input_value(0), weights, False, True)
        split = ops.variadic_split(merged, ops.constant(-1, np.int64), ops.constant(np.array(sizes, np.int64)))
        for part, product in zip(split.outputs(), products, strict=True):
            product.output(0).replace(part)
        fewer += len(products) - 1
    return fewer


def array_of(constant: Any) -> NDArray[Any]:
    """Numbers of a constant in an array of our own; unsigned 4-bit ones in a byte each."""
    import numpy as np

    numbers: NDArray[Any]
    if constant.get_element_type() != ov.Type.u4:
        numbers = np.array(constant.get_data())
    else:
        packed = constant.get_data(dtype=np.uint8).reshape(-1)
        shape = constant.get_output_shape(0)
        numbers = np.stack([packed & 15, packed >> 4], -1).reshape(-1)[: prod(shape)].reshape(shape)
    return numbers


def _rows_are_outputs(product: Any) -> bool:
    attributes = product.get_attributes()
    return bool(attributes["transpose_b"] and not attributes["transpose_a"])


def _has_bias(product: Any) -> bool:
    readers = [port.get_node() for port in product.output(0).get_target_inputs()]
    values = [
        value.get_node() for reader in readers if reader.get_type_name() == "Add" for value in reader.input_values()
    ]
    return any(_is_constant(value) for value in values)


def _is_constant(node: Any) -> bool:
    if node.get_type_name() == "Constant":
        return True
    return node.get_type_name() in _KINDS and all(_is_constant(value.get_node()) for value in node.input_values())


def _is_stackable(node: Any, rows: int) -> bool:
    """Made of constants only, each with a row for every row of the matrix or with one for all."""
    shape = node.get_output_shape(0) if not node.get_output_partial_shape(0).is_dynamic else None
    if shape is None or node.get_type_name() not in ("Constant", *_KINDS):
        return False
    if node.get_type_name() == "Constant":
        known = node.get_element_type() in (ov.Type.u4, ov.Type.u8, ov.Type.i8, ov.Type.f16, ov.Type.f32)
        return known and (not len(shape) or shape[0] == 1 or (len(shape) > 1 and shape[0] == rows))
    inputs = [value.get_node() for value in node.input_values()]
    if node.get_type_name() == "Reshape":
        return bool(shape[0] == rows and inputs[0].get_output_shape(0)[0] == rows and _is_stackable(inputs[0], rows))
    return all(_is_stackable(value, rows) for value in inputs)


def _form(node: Any) -> str:
    """What has to be alike in matrices to be stacked: kinds, types and all but the number of rows."""
    shape = node.get_output_shape(0)
    rows = "1" if len(shape) > 0 and shape[0] == 1 else "n"
    below = ", ".join(_form(value.get_node()) for value in node.input_values())
    own = f"{node.get_type_name()} {node.get_element_type().get_type_name()} {rows} {list(shape[1:])}"
    if node.get_type_name() == "Constant" and (rows == "1" or not len(shape)):
        own += f" {node.get_data().tolist()}"  # one for all rows: it has to be the same one
    return f"{own} ({below})"


def _stacked(nodes: list[Any]) -> Any:
    """One subgraph of constants that gives the rows of all."""
    import numpy as np

    first, kind = nodes[0], nodes[0].get_type_name()
    shape = first.get_output_shape(0)
    if kind == "Constant":
        if not len(shape) or shape[0] == 1:
            return first
        made = ops.constant(np.concatenate([array_of(node) for node in nodes]), first.get_element_type())
        made.set_friendly_name("+".join(node.get_friendly_name() for node in nodes))
        return made
    below = [_stacked([node.input_value(0).get_node() for node in nodes])]
    if kind == "Reshape":
        rows = sum(node.get_output_shape(0)[0] for node in nodes)
        return ops.reshape(below[0], ops.constant(np.array([rows, *shape[1:]], np.int64)), False)
    if kind == "Convert":
        return ops.convert(below[0], first.get_element_type().get_type_name())
    other = _stacked([node.input_value(1).get_node() for node in nodes])
    return ops.subtract(below[0], other) if kind == "Subtract" else ops.multiply(below[0], other)
