"""Which value of an ONNX graph stands for a value of the IR that it is made from."""

from __future__ import annotations

from typing import Any

from edgespec.backends.onnx.builder import OnnxBuilder
from edgespec.backends.onnx.weights import unsupported


class Counterparts:
    """The names of values that have a counterpart, and how many columns each has.

    onnx: the graph under construction, which holds them.
    """

    def __init__(self, onnx: OnnxBuilder) -> None:
        self.onnx = onnx
        self.widths: dict[str, int] = {}
        """columns, by name"""
        self.together: dict[tuple[str, ...], str] = {}
        """parts: the value that was split into them"""
        self._names: dict[tuple[str, int], str] = {}

    def of(self, value: Any) -> str | None:
        return self._names.get(place(value))

    def need(self, value: Any) -> str:
        """Raises NoONNXForm with the first operator on the way that has no counterpart."""
        name = self.of(value)
        if name is None:
            node, below = value.get_node(), value.get_node()
            while below is not None:
                node = below
                unknown = (source for source in node.input_values() if self.of(source) is None)
                below = next((source.get_node() for source in unknown if _depends(source.get_node())), None)
            raise unsupported(f"{node.get_type_name()} {node.get_friendly_name()}")
        return name

    def name(self, value: Any, name: str, width: int) -> None:
        self._names[place(value)] = name
        self.widths[name] = width

    def add(self, kind: str, inputs: list[str], node: Any, width: int, **options: Any) -> None:
        """An operator of ONNX that gives what ``node`` gives."""
        self.onnx.add(kind, inputs, [node.get_name()], **options)
        self.name(node.output(0), node.get_name(), width)


def place(value: Any) -> tuple[str, int]:
    """What tells a value of the IR from all others: its node and port."""
    return value.get_node().get_name(), value.get_index()


def length(dimension: Any) -> int:
    if dimension.is_dynamic:
        raise unsupported("a size that varies where none should")
    return int(dimension.get_length())


def is_flat(node: Any) -> bool:
    """Whether it takes ``(tokens, 1, columns)``, not yet grouped into heads."""
    return length(node.get_input_partial_shape(0).rank) == 3


def _depends(node: Any) -> bool:
    """Whether a node depends on what the model is given."""
    seen, todo = set(), [node]
    while todo:
        node = todo.pop()
        if node.get_type_name() == "Parameter":
            return True
        if node.get_name() not in seen:
            seen.add(node.get_name())
            todo += [source.get_node() for source in node.input_values()]
    return False
