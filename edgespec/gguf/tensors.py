"""Tensors of a GGUF file, read from it a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgespec.errors import ConversionError
from edgespec.gguf.header import Header, Tensor

Floats = NDArray[np.float32]

_PART = 1 << 22
"""numbers that are taken apart at a time: 16 MiB as float32, and most work stays in a CPU's cache"""


_IN_PAIRS = ("llama", "granite")
"""architectures whose queries and keys are stored with what is rotated together side by side"""


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
        rows = self.shape[0]
        data = np.memmap(self.path, np.uint8, "r", self.place.offset, (rows, self.place.nbytes // rows))
        return np.array(data[which] if self.order is None else data[self.order[which]])

    def rows(self, which: slice) -> Floats:
        """Raises ConversionError: numbers that are not finite."""
        import gguf

        return self.finite(gguf.quants.dequantize(self.bytes(which), gguf.GGMLQuantizationType[self.kind]))

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
    """All tensors of a file that was checked, by their names."""
    stored = {}
    for name, tensor in header.tensors.items():
        columns, rows = (1, *tensor.shape) if len(tensor.shape) == 1 else tensor.shape
        order = _order(header, name, rows)
        stored[name] = Stored(name, tensor.kind, (rows, columns), header.path, tensor, order)
    return stored


def _order(header: Header, name: str, rows: int) -> NDArray[np.intp] | None:
    """llama.cpp stores queries and keys of these as 0, n/2, 1, n/2 + 1, ... within a head of n rows."""
    q_heads = header.get("{arch}.attention.head_count")
    heads = {"attn_q": q_heads, "attn_k": header.get("{arch}.attention.head_count_kv", q_heads)}
    found = heads.get(name.split(".")[-2]) if header.architecture in _IN_PAIRS else None
    if isinstance(found, list):  # the same in all layers
        found = found[0]
    return np.arange(rows).reshape(found, -1, 2).swapaxes(1, 2).reshape(-1) if found else None
