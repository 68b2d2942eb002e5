"""An ONNX file without its weights: small enough to be parsed, whoever made it.

A file of two gigabytes may hold a thousand small operators, or a thousand million empty ones, which take a hundred
times as much memory parsed. So the wire format is walked first, and what is no weight may take a few megabytes only.

Fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

_MOST_BYTES = 8 << 20
"""of a file without its weights: a model of 80 layers has two megabytes"""
_MOST_FIELDS = 1 << 18
"""operators, their attributes, tensors and sizes, and what each says of itself"""
_SMALL_BYTES = 1 << 10
"""of a tensor that is kept: axes, shapes and other numbers that an operator reads"""
_WEIGHTS: dict[int, Any] = {}
"""the content of a tensor, by any of the fields that may hold it"""
_TENSOR = dict.fromkeys((4, 5, 7, 9, 10, 11), _WEIGHTS)
_GRAPH: dict[int, Any] = {}
_ATTRIBUTE = {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH}  # t, g, tensors, graphs
_NODE = {5: _ATTRIBUTE}
_VALUE: dict[int, Any] = {2: {1: {2: {1: {}}}}}  # type, tensor_type, shape, dim
_GRAPH |= {1: _NODE, 5: _TENSOR, 11: _VALUE, 12: _VALUE, 13: _VALUE, 14: {2: {}}, 15: {1: _TENSOR, 2: _TENSOR}}
"""node, initializer, input, output, value_info, quantization_annotation, sparse_initializer"""
_MODEL = {7: _GRAPH, 20: {1: _GRAPH, 2: _GRAPH}, 25: {7: _NODE, 11: _ATTRIBUTE}}  # graph, training_info, functions
_DEEPEST = 32
"""messages within messages"""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def without_weights(path: Path) -> bytes:
    """The message without the content of initializers. ValueError if it is none, or too large even so."""
    if path.stat().st_size == 0:
        raise ValueError("an empty file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Copy(data).of(0, len(data), _MODEL, _DEEPEST)


class _Copy:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._bytes_left = _MOST_BYTES
        self._fields_left = _MOST_FIELDS

    def of(self, begin: int, end: int, inner: dict[int, Any], deeper: int) -> bytes:
        """One message. inner: its fields that are messages to look into, and those that are weights. deeper: how many
        messages may lie within one another in it."""
        if deeper == 0:
            raise ValueError("graphs within graphs")
        parts, at = [], begin
        while at < end:
            start = at
            tag, at = self._varint(at, end)
            field, kind = tag >> 3, tag & 7
            inside = at
            if kind == _BYTES:
                length, inside = self._varint(at, end)
                at = inside + length
            elif kind == _VARINT:
                _, at = self._varint(at, end)
            elif kind in (_FIXED32, _FIXED64):
                at += 4 if kind == _FIXED32 else 8
            else:
                raise ValueError("not a protobuf message")
            if at > end:
                raise ValueError("it was cut short")
            self._fields_left -= 1
            known = inner.get(field) if kind == _BYTES else None
            if known is _WEIGHTS and at - inside > _SMALL_BYTES:
                continue
            if known is not None and known is not _WEIGHTS:
                body = self.of(inside, at, known, deeper - 1)
                parts.append(_varint(tag) + _varint(len(body)) + body)
            else:
                parts.append(self._data[start:at] if at - start <= self._bytes_left else b"")
                self._bytes_left -= at - start
            if self._bytes_left < 0 or self._fields_left < 0:
                raise ValueError("more operators than any known model has")
        return b"".join(parts)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """A number, and where it ends."""
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise ValueError("it was cut short")
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise ValueError("not a protobuf message")


def _varint(value: int) -> bytes:
    """A number as it is written.

    >>> _varint(300)
    b'\\xac\\x02'
    """
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])
