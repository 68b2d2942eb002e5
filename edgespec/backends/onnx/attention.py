"""Attention in an IR, with all that an operator of ONNX Runtime does itself: GroupQueryAttention lays out heads, turns
queries and keys, and appends to the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgespec.backends.onnx.counterparts import Counterparts, length
from edgespec.backends.onnx.rotary import Rotary, behind
from edgespec.backends.onnx.weights import number, unsupported
from edgespec.backends.openvino import windows

_ALIBI, _SINKS = 11, 20  # inputs of PagedAttentionExtension


class Attention:
    """The layers in their order. caps: of the scores of each layer, or none."""

    def __init__(self, values: Counterparts, caps: Sequence[float] = ()) -> None:
        self.rotaries: dict[tuple[str, str], tuple[Rotary, int]] = {}
        """by the names of its tables; size of a head"""
        self._values = values
        self._onnx = values.onnx
        self._caps = caps
        self._layers = 0

    def read(self, node: Any) -> None:
        """Rotary embedding, the cache and attention, of what the three products before it give."""
        layer, inputs = self._layers, node.input_values()
        widths = self._values.widths
        self._layers += 1
        (query, turned), (key, turned_key), (value, turned_value) = (
            behind(value, self._values.of) for value in inputs[:3]
        )
        if turned != turned_key or turned_value is not None:
            raise unsupported("attention that turns queries and keys in different ways")
        size = _head_size(inputs[0])
        if {_head_size(value) for value in inputs[1:3]} != {size} or widths[key] != widths[value]:
            raise unsupported("attention with heads of different sizes")
        scale, window = number(inputs[9]), windows.of(node)
        others = any(_has_rows(inputs[at]) for at in (_ALIBI, _SINKS) if at < len(inputs))
        if scale is None or window is None or others:
            raise unsupported("attention with a varying window, ALiBi or sinks")
        options: dict[str, Any] = {"local_window_size": window} if window else {}
        if self._caps:
            options["softcap"] = float(self._caps[layer])
        kv_heads = widths[key] // size
        names = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        presents = [f"present.{layer}.{part}" for part in ("key", "value")]
        for name in names:
            self._onnx.input(name, "FLOAT", [1, kv_heads, "capacity", size])
        for name in presents:
            self._onnx.output(name, "FLOAT", [1, kv_heads, "capacity", size])
        together = self._values.together.get((query, key, value))
        rows = [
            self._onnx.make("Gather", [name, "attention_rows"], axis=1)
            for name in ([together] if together else (query, key, value))
        ]
        out, padded = f"attention.{layer}", f"attention.{layer}.padded"
        self._onnx.add(
            "GroupQueryAttention",
            [*rows, *[""] * (3 - len(rows)), *names, "seqlens_k", "total_sequence_length", *self._tables(turned, size)],
            [padded, *presents],
            domain="com.microsoft",
            num_heads=widths[query] // size,
            kv_num_heads=kv_heads,
            scale=scale,
            do_rotary=int(turned is not None),
            rotary_interleaved=0,
            **options,
        )
        self._onnx.add("Gather", [padded, "own_rows"], [out], axis=1)
        self._values.name(node.output(0), out, widths[query])

    def _tables(self, turned: Rotary | None, size: int) -> list[str]:
        """Names of the inputs with cosines and sines of each position."""
        if turned is None:
            return []
        for names, known in self.rotaries.items():
            if known == (turned, size):
                return list(names)
        names = f"cos.{len(self.rotaries)}", f"sin.{len(self.rotaries)}"
        for name in names:
            self._onnx.input(name, "FLOAT", ["positions", size // 2])
        self.rotaries[names] = turned, size
        return list(names)


def _head_size(value: Any) -> int:
    """The heads of an attention's input are laid beside each other last of all."""
    node = value.get_node()
    shape = node.get_input_partial_shape(0) if node.get_type_name() == "Reshape" else None
    if shape is None or length(shape.rank) != 4:
        raise unsupported("attention whose heads are not laid beside each other")
    return length(shape[3])


def _has_rows(value: Any) -> bool:
    return bool(length(value.get_partial_shape()[0]))
