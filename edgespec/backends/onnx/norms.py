"""RMSNorm in an IR: two products, which are one operator in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgespec.backends.onnx.counterparts import Counterparts, length, place
from edgespec.backends.onnx.weights import Compressed, number, origin, weights_of


class Norms:
    """The norms that were found so far: the second product of one refers to the first."""

    def __init__(self, values: Counterparts) -> None:
        self._values = values
        self._onnx = values.onnx
        self._normed: dict[tuple[str, int], tuple[str, float]] = {}
        """x / rms(x): x and epsilon"""

    def read(self, node: Any, values: list[Any], names: list[str | None]) -> bool:
        """Whether a product is one of the two: ``x * (1 / rms(x))``, or that with a constant, unless it is all ones.

        values: its inputs. names: of their counterparts.
        """
        for value, other, source in zip(values, reversed(values), reversed(names), strict=True):
            epsilon = _epsilon(value.get_node(), other)
            if epsilon is not None and source is not None:
                size = length(other.get_partial_shape()[-1])
                self._normed[place(node.output(0))] = source, epsilon
                ones = self._onnx.constant(f"ones.{size}", np.ones(size, np.float32))
                self._normalize(node, source, epsilon, ones, size)
                return True
            constant = weights_of(value.get_node())
            normed = self._normed.get(place(_passed(other)))
            if normed is not None and constant is not None and not isinstance(constant, Compressed):
                scale = self._onnx.constant(origin(value.get_node()), constant.reshape(-1))
                self._normalize(node, *normed, scale, constant.size)
                return True
        return False

    def _normalize(self, node: Any, source: str, epsilon: float, scale: str, size: int) -> None:
        """size: columns that are normed together, all or those of one head."""
        width = self._values.widths[source]
        options = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
        if size == width:
            self._values.add("SimplifiedLayerNormalization", [source, scale], node, width, **options)
            return
        heads = self._onnx.integers(0, 0, -1, size)
        flat = self._onnx.integers(0, 0, width)
        of_head = self._onnx.make(
            "SimplifiedLayerNormalization", [self._onnx.make("Reshape", [source, heads]), scale], **options
        )
        self._values.add("Reshape", [of_head, flat], node, width)


def _epsilon(inverse: Any, x: Any) -> float | None:
    """If ``inverse`` is ``1 / sqrt(mean(x ** 2) + epsilon)``: epsilon."""
    if inverse.get_type_name() not in ("Divide", "Power"):
        return None
    root = inverse.input_value(1 if inverse.get_type_name() == "Divide" else 0).get_node()
    if root.get_type_name() == "Sqrt":
        root = root.input_value(0).get_node()
    if root.get_type_name() != "Add":
        return None
    for mean, epsilon in (root.input_values(), reversed(root.input_values())):
        if mean.get_node().get_type_name() == "ReduceMean" and (found := number(epsilon)) is not None:
            square = mean.get_node().input_value(0).get_node()
            if square.get_type_name() in ("Power", "Multiply") and place(square.input_value(0)) == place(x):
                return found
    return None


def _passed(value: Any) -> Any:
    while value.get_node().get_type_name() == "Convert":
        value = value.get_node().input_value(0)
    return value
