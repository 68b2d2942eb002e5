"""Which row of the graph's products is which row of the torch target: exporters merge, reorder and permute them.

Merged products (query, key and value) keep no names, key and value are often of the same size, and GGUF files hold
query and key in another order. So rows are recognised by their weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.openvino.runtime import ops, ov
from edgespec.backends.openvino.settings import FULL_PRECISION
from edgespec.errors import ConversionError

_COLUMNS = 256
"""of each row that are compared: more than enough to tell rows apart"""
_ALIKE = 0.9
"""least cosine of a row and its coded form; 4 bits measure 0.99"""


def recognised(products: list[Any], weights: NDArray[np.float32], name: str) -> NDArray[np.intp]:
    """``(out,)`` for each row of the products, one product after the other, the row of ``weights`` that it is.

    products: nodes of the graph. weights: ``(out, in)`` of the torch target, as it was trained with. Raises
    ConversionError if they are not those of ``name``.
    """
    found, wanted = _rows(products), weights[:, :_COLUMNS]
    what = f"the graph's products are not those that were trained: {name}"
    if len(found) != len(wanted) or found.shape[1] != weights.shape[1]:
        raise ConversionError(what, got=f"{list(found.shape)} weights", allowed=f"{list(weights.shape)}")
    found, wanted = _unit(found[:, :_COLUMNS]), _unit(wanted)
    if np.quantile((found * wanted).sum(1), 0.01) > _ALIKE:
        return np.arange(len(found))
    likeness = found @ wanted.T
    order = likeness.argmax(1)
    if len(np.unique(order)) < len(order) or likeness.max(1).min() < _ALIKE:
        known = np.unique(order[likeness.max(1) >= _ALIKE])
        raise ConversionError(what, got=f"{len(known)} rows alike", allowed=str(len(order)))
    return np.asarray(order, np.intp)


def _rows(products: list[Any]) -> NDArray[np.float32]:
    """``(out, in)`` the numbers that the engine makes of the constants."""
    results = [ops.result(ops.convert(product.input_value(1), "f32")) for product in products]
    compiled = ov.Core().compile_model(ov.Model(results, []), "CPU", FULL_PRECISION)
    made = compiled({})
    return np.concatenate([np.array(made[index]) for index in range(len(results))])


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True) + np.float32(1e-12)
    return np.asarray(rows / lengths, np.float32)
