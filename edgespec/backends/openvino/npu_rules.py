"""Which weights an NPU takes: looked up in a graph before it is compiled.

The NPU's compiler ends the whole process at some weights, with no exception. So they are refused here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgespec.errors import DeviceError

_FOUR_BITS = ("i4", "u4")
_GROUP = 128
"""the one size of a group that Intel names for NPUs, besides whole channels"""
_HINT = "export it for an NPU: edgespec export --weights int4 --sym --group-size 128 (or -1); or use another device"
_ALLOWED = "int4 without zero points over 128 weights or a whole channel, int8, f16, f32"


def require_weights(model: Any, xml: Path) -> None:
    """Raises DeviceError unless the 4-bit weights of a graph are of a form that an NPU takes."""
    for node in model.get_ordered_ops():
        is_short = node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in _FOUR_BITS
        if is_short and (wrong := _wrong(node)):
            raise DeviceError(f"an NPU does not take the weights of {xml}", got=wrong, allowed=_ALLOWED, hint=_HINT)


def _wrong(constant: Any) -> str | None:
    """What is wrong with 4-bit weights, shaped ``(rows, columns)`` or ``(rows, groups, group)``."""
    readers = _readers(constant)
    while readers and all(node.get_type_name() == "Convert" for node in readers):
        readers = [after for node in readers for after in _readers(node)]
    if any(node.get_type_name() == "Subtract" for node in readers):
        return "4-bit weights with zero points"
    shape = list(constant.get_output_shape(0))
    if len(shape) == 3 and shape[1] > 1 and shape[2] != _GROUP:
        return f"4-bit weights with a step for {shape[2]} of them"
    return None


def _readers(node: Any) -> list[Any]:
    return [reader.get_node() for output in node.outputs() for reader in output.get_target_inputs()]
