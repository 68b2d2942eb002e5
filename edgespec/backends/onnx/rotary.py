"""What stands between a product and the attention in an IR: heads are laid out, and queries and keys are turned.

GroupQueryAttention does both itself. So here is found what it has to be told: which product it is, and the tables of
the rotary embedding, ``x * cos + rotated(x) * sin`` with the halves of a head in pairs (RoPE, Su et al. 2021,
arXiv:2104.09864). Anything else on the way is refused, since it would be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgespec.backends.onnx.counterparts import place
from edgespec.backends.onnx.weights import number, unsupported

LAYOUT = ("Convert", "Reshape", "Transpose", "Unsqueeze", "Squeeze")
"""rows stay rows and columns columns"""
_FIRST_INPUT = (*LAYOUT, "Negative", "Split", "VariadicSplit")


@dataclass(frozen=True)
class Rotary:
    """Values of the IR that depend on the position alone, one number for each column of a head."""

    cos: Any
    sin: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rotary) and self._names() == other._names()

    def __hash__(self) -> int:
        return hash(self._names())

    def _names(self) -> tuple[tuple[str, int], ...]:
        return place(self.cos), place(self.sin)


def behind(value: Any, name_of: Callable[[Any], str | None]) -> tuple[str, Rotary | None]:
    """The value with a counterpart that an input of the attention is made of, and how it is turned on the way.

    name_of: of the counterpart, None if there is none. Raises NoONNXForm if anything else is done to it.
    """
    found: set[str] = set()
    tables: dict[str, dict[tuple[str, int], Any]] = {"cos": {}, "sin": {}}
    seen, todo = set(), [value]
    while todo:
        value = todo.pop()
        node = value.get_node()
        if place(value) in seen:
            continue
        seen.add(place(value))
        kind = node.get_type_name()
        if (name := name_of(value)) is not None:
            found.add(name)
        elif kind in _FIRST_INPUT or (kind == "Slice" and number(node.input_value(3)) == 1):
            todo.append(node.input_value(0))
        elif kind in ("Add", "Concat"):
            todo += node.input_values()
        elif kind == "Multiply":
            left, right = node.input_values()
            if _of_positions(left):
                left, right = right, left
            if _of_positions(right):
                table = _stripped(right, ("Convert", "Unsqueeze", "Squeeze"))
                part = "sin" if _stripped(left, LAYOUT).get_node().get_type_name() == "Concat" else "cos"
                tables[part][place(table)] = table
            elif number(right) != -1:
                raise unsupported("Multiply between a product and the attention")
            todo.append(left)
        else:
            raise unsupported(f"{kind} between a product and the attention")
    if len(found) != 1:
        raise unsupported("attention whose query, key or value is not one product")
    counts = {part: len(values) for part, values in tables.items()}
    if counts == {"cos": 0, "sin": 0}:
        return found.pop(), None
    if counts != {"cos": 1, "sin": 1}:
        raise unsupported("a rotary embedding of another form")
    return found.pop(), Rotary(*(next(iter(tables[part].values())) for part in ("cos", "sin")))


def _of_positions(value: Any) -> bool:
    """Whether a value depends on position_ids, and on the text in its length at most."""
    seen, todo, positions = set(), [value.get_node()], False
    while todo:
        node = todo.pop()
        if node.get_name() in seen:
            continue
        seen.add(node.get_name())
        if node.get_type_name() == "Parameter":
            if "position_ids" not in node.output(0).get_names():
                return False
            positions = True
        elif node.get_type_name() != "ShapeOf":
            todo += [source.get_node() for source in node.input_values()]
    return positions


def _stripped(value: Any, of: tuple[str, ...]) -> Any:
    while value.get_node().get_type_name() in of:
        value = value.get_node().input_value(0)
    return value
