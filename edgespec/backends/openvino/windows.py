"""Windows of attention: layers that see the newest tokens only.

An IR holds a window as a mask. OpenVINO's transformation to paged attention takes it for one where the mask has a form
that it knows, and for none else. So a mask that says what it is, by the name WINDOW and a number, is held against what
became of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgespec.errors import BackendError

WINDOW = "attention_window_"
"""begins the name of a mask's node"""
_INPUT = 10  # of PagedAttentionExtension
_PASSED = ("Convert", "Squeeze", "Reshape", "Unsqueeze")


def named(model: Any) -> list[int]:
    """Of each attention whose mask says that it is a window, before the transformation: how many tokens."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention" and node.get_input_size() > 3:
            name = node.input_value(3).get_node().get_friendly_name()
            if name.startswith(WINDOW):
                found.append(int(name.removeprefix(WINDOW)))
    return sorted(found)


def require(model: Any, windows: list[int]) -> None:
    """Raises BackendError unless the paged graph has these windows."""
    found = [window for node in _paged(model) if (window := of(node))]
    if windows and sorted(found) != windows:
        got = f"{len(found)} of {len(windows)} windows" if len(found) < len(windows) else f"windows of {found}"
        hint = "use another release of openvino: pyproject.toml names those that edgespec is tested with"
        raise BackendError("this OpenVINO does not know the windows of this model's attention", got=got, hint=hint)


def any_in(model: Any) -> bool:
    """Whether a paged graph has one, or may have."""
    return any(of(node) != 0 for node in _paged(model))


def _paged(model: Any) -> Iterator[Any]:
    return (node for node in model.get_ordered_ops() if node.get_type_name() == "PagedAttentionExtension")


def of(attention: Any) -> int | None:
    """Tokens that a PagedAttentionExtension sees, 0 for all; None if the graph computes it from what it is given."""
    return _whole(attention.input_value(_INPUT))


def _whole(value: Any) -> int | None:
    """Of constants that are added up: the transformation leaves the arithmetic in the graph."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        numbers = node.get_data().reshape(-1)
        return int(numbers[0]) if len(numbers) == 1 else None
    if kind in _PASSED:
        return _whole(node.input_value(0))
    if kind not in ("Multiply", "Subtract"):
        return None
    left, right = (_whole(node.input_value(at)) for at in (0, 1))
    if left is None or right is None:
        return None
    return left * right if kind == "Multiply" else left - right
