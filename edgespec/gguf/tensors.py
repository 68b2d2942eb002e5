"""Tensors of a GGUF file, read from it a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgespec.errors import ConversionError
from edgespec.gguf.architectures import ARCHITECTURES
from edgespec.gguf.dimensions import Dimensions
from edgespec.gguf.header import Header, Tensor

Floats = NDArray[np.float32]

_PART = 1 << 22
"""numbers that are taken apart at a time: 16 MiB as float32, and most work stays in a CPU's cache"""


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of the file as ``(out, in)``, its rows in the order that the graph wants. A vector: ``(out, 1)``."""

    name: str
    kind: str
    shape: tuple[int, int]
    path: Path
    place: Tensor
    order: NDArray[np.intp] | None
    """where the graph's rows are in the file, if they are moved"""

    @property
    def vector(self) -> bool:
        return len(self.place.shape) == 1

    def bytes(self, which: slice) -> NDArray[np.uint8]:
        """``(rows, bytes of a row)``. Mapped anew each time: what was read of a file does not stay in memory."""
        rows = self.place.shape[-1]
        data = np.memmap(self.path, np.uint8, "r", self.place.offset, (rows, self.place.nbytes // rows))
        return np.array(data[which] if self.order is None else data[self.order[which]])

    def rows(self, which: slice) -> Floats:
        """Raises ConversionError: numbers that are not finite."""
        import gguf

        return self.finite(gguf.quants.dequantize(self.bytes(which), gguf.GGMLQuantizationType[self.kind]))

    def chosen(self, rows: NDArray[np.intp]) -> Floats:
        """Some rows, by their numbers."""
        return np.concatenate([self.rows(slice(row, row + 1)) for row in rows.tolist()])

    def vector_values(self) -> Floats:
        return self.rows(slice(None)).reshape(-1)

    def finite(self, values: Floats) -> Floats:
        """``values``, which came of this tensor. Raises ConversionError if one is not finite."""
        if not np.isfinite(values).all():
            raise ConversionError(f"{self.name} holds numbers that are not finite", hint="download the file again")
        return values

    def parts(self) -> Iterator[slice]:
        step = max(1, _PART // self.shape[1])
        rows = self.shape[0]
        return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def read(header: Header) -> dict[str, Stored]:
    """All tensors of a file that was checked, by their names; those that are one in the file by the usual ones."""
    sizes, stored = Dimensions.of(header), {}
    for name, tensor in header.tensors.items():
        columns, rows = (1, *tensor.shape) if len(tensor.shape) == 1 else tensor.shape
        for part, begin, end in _parts(name, sizes, rows):
            order = _order(header.architecture, sizes, part)
            if order is None and (begin, end) != (0, rows):
                order = np.arange(end - begin)
            moved = None if order is None else order + begin
            stored[part] = Stored(part, tensor.kind, (end - begin, columns), header.path, tensor, moved)
    return stored


def _parts(name: str, sizes: Dimensions, rows: int) -> list[tuple[str, int, int]]:
    """Names of what a tensor holds, and from which row to which."""
    block, _, of = name.rpartition(".attn_qkv")
    if block:
        q, k = sizes.queries, sizes.queries + sizes.keys
        bounds = {"q": (0, q), "k": (q, k), "v": (k, rows)}
        return [(f"{block}.attn_{part}{of}", begin, end) for part, (begin, end) in bounds.items()]
    block, _, of = name.rpartition(".ffn_up")
    if block and rows == sizes.gate_and_up:
        half = sizes.feed_forward
        return [(f"{block}.ffn_gate{of}", 0, half), (name, half, rows)]
    return [(name, 0, rows)]


def _order(architecture: str, sizes: Dimensions, name: str) -> NDArray[np.intp] | None:
    """The rows of queries and keys, so that what is rotated together is half a head apart.

    llama.cpp stores those of some architectures as 0, n/2, 1, n/2 + 1, ... within a head of n rows. Where the first
    ``r`` rows alone are rotated, the others go to both halves: they are "rotated" by nothing. A product of queries and
    keys does not ask for the order.
    """
    heads = {"attn_q": sizes.heads, "attn_k": sizes.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return None
    head, turned = sizes.head, sizes.rope.rotated
    if ARCHITECTURES[architecture].in_pairs:
        of_head = np.arange(head).reshape(-1, 2).T.reshape(-1)
    elif turned != head:
        pairs, others = np.arange(turned).reshape(2, -1), np.arange(turned, head).reshape(2, -1)
        of_head = np.concatenate([pairs, others], 1).reshape(-1)
    else:
        return None
    rows: NDArray[np.intp] = (np.arange(heads)[:, None] * head + of_head).reshape(-1)
    return rows
