"""Adds trained placeholders to the target's own graph: its weights stay as they are, in whatever form they are.

The placeholders are ids behind the vocabulary. ``ids - min(ids, last)`` is 0 for a real token and 1, 2, .. for them. It
chooses a row of three tables: whether the embedding is that of a real token, what is added to it, and whether an
adapter acts. For real tokens these are 1, 0 and 0: a product with 1 and a sum with 0 are the same number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.openvino.runtime import ops, ov
from edgespec.errors import ConversionError
from edgespec_train.sdsat.placeholders import GROUPS, Placeholders
from edgespec_train.sdsat.rows import recognised


def with_placeholders(xml: Path, out: Path, placeholders: Placeholders) -> int:
    """Write the graph with its placeholders, and its weights beside it; returns the id of the first placeholder.

    Raises ConversionError for a graph whose products are not those that the adapters were trained at.
    """
    core = ov.Core()
    core.set_property({"ENABLE_MMAP": False})  # a mapped file could not be replaced on Windows
    model = core.read_model(xml)
    [ids] = [port for port in model.inputs if "input_ids" in port.get_names()]
    lookup = _lookup(ids)
    rows = lookup.input_value(0).get_partial_shape()[0].get_length()
    indices = lookup.input_value(1)
    real = ops.minimum(indices, ops.constant(np.array(rows - 1), indices.get_element_type()))
    number = ops.subtract(indices, real)
    lookup.input(1).replace_source_output(real.output(0))
    vectors = placeholders.embeddings.detach().float().numpy()
    table = np.concatenate([np.zeros_like(vectors[:1]), vectors])
    is_real = _rows(np.array([[1.0], *([[0.0]] * len(vectors))], np.float32), number)
    readers = lookup.output(0).get_target_inputs()
    embedded = ops.add(ops.multiply(lookup, is_real), _rows(table, number))
    for port in readers:
        port.replace_source_output(embedded.output(0))
    acts = _rows(np.array([[0.0], *([[1.0]] * len(vectors))], np.float32), number)
    products = _products(model)
    for layer, found_adapters in enumerate(placeholders.layers):
        adapters: Any = found_adapters
        for group, names in GROUPS.items():
            found = _take(products, len(names), layer)
            if group not in adapters:
                continue
            adapter = adapters[group]
            order = recognised(found, placeholders.weights(adapter), f"layer {layer}, {', '.join(names)}")
            up, begin = adapter.up.detach().float().numpy()[order], 0
            narrow = ops.matmul(found[0].input_value(0), _matrix(adapter.down.detach().float().numpy()), False, True)
            acting = ops.multiply(narrow, acts)
            for product in found:
                size = int(product.get_output_partial_shape(0)[-1].get_length())
                _add_to(product, ops.matmul(acting, _matrix(up[begin : begin + size]), False, True))
                begin += size
    out.parent.mkdir(parents=True, exist_ok=True)
    model.validate_nodes_and_infer_types()
    ov.save_model(model, out, compress_to_fp16=False)
    return int(rows)


def _lookup(ids: Any) -> Any:
    """The node that looks up embeddings."""
    waiting, found = [ids], []
    while waiting:
        for port in waiting.pop(0).get_target_inputs():
            node = port.get_node()
            if node.get_type_name() == "Gather" and port.get_index() == 1:
                found.append(node)
            elif node.get_type_name() in ("Convert", "Unsqueeze", "Reshape"):
                waiting += node.outputs()
    if len(found) != 1:
        what = "the target's graph has to look up its embeddings in one table"
        raise ConversionError(what, got=f"{len(found)} tables", hint="export the target with int8 weights")
    return found[0]


def _rows(table: NDArray[np.float32], number: Any) -> Any:
    return ops.gather(ops.constant(table), number, ops.constant(np.array(0, np.int64)))


def _matrix(values: NDArray[np.float32]) -> Any:
    """In 16 bits on disk."""
    return ops.convert(ops.constant(values.astype(np.float16)), "f32")


def _products(model: Any) -> list[Any]:
    """Products of activations and constant matrices, in the order of the graph, without the output head."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and node.get_attributes()["transpose_b"]:
            shape = node.input_value(1).get_partial_shape()
            if shape.is_static and len(shape) == 2 and _is_constant(node.input_value(1).get_node()):
                found.append(node)
    return found[:-1]


def _is_constant(node: Any) -> bool:
    return node.get_type_name() == "Constant" or (
        node.get_type_name() in ("Convert", "Multiply", "Subtract", "Reshape")
        and all(_is_constant(value.get_node()) for value in node.input_values())
    )


def _take(products: list[Any], most: int, layer: int) -> list[Any]:
    """The next products: those that read what the first one reads. There is one for all of a group, or up to one for
    each of its names."""
    if not products:
        raise ConversionError("the target's graph has fewer products than its layers", got=f"none in layer {layer}")
    first = products[0].input_value(0)
    together = [node for node in products[:most] if node.input_value(0) == first]
    return [products.pop(0) for _ in together]


def _add_to(product: Any, change: Any) -> None:
    readers = product.output(0).get_target_inputs()
    changed = ops.add(product, change)
    for port in readers:
        port.replace_source_output(changed.output(0))
