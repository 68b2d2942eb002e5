"""Tensors of a GGUF file, mapped from it and dequantized a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgespec.errors import ConversionError
from edgespec.gguf.header import Header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_PART = 1 << 24  # numbers dequantized at a time: 64 MiB


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of the file as ``(out, in)``, its rows in the order that the graph wants. A vector: ``(out, 1)``."""

    name: str
    kind: str
    shape: tuple[int, int]
    data: NDArray[np.uint8]
    """``(out, bytes of a row)``, mapped from the file"""
    order: NDArray[np.intp]
    vector: bool

    def rows(self, which: Any) -> Floats:
        """Raises ConversionError: numbers that are not finite."""
        import gguf
        import numpy as np

        data = self.data[self.order[which]]
        with np.errstate(all="ignore"):  # what is not finite is refused below
            values: Floats = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[self.kind])
        if not np.isfinite(values).all():
            raise ConversionError(f"{self.name} holds numbers that are not finite", hint="download the file again")
        return values

    @cached_property
    def sampled(self) -> Floats:
        return sample(self.shape, self.rows)

    def parts(self) -> Iterator[slice]:
        step = max(1, _PART // self.shape[1])
        return (slice(begin, begin + step) for begin in range(0, self.shape[0], step))


def read(header: Header) -> list[Stored]:
    """All tensors of a file that was checked."""
    import numpy as np

    stored = []
    for name, tensor in header.tensors.items():
        vector = len(tensor.shape) == 1
        columns, rows = (1, *tensor.shape) if vector else tensor.shape
        data = np.memmap(header.path, np.uint8, "r", tensor.offset, (rows, tensor.nbytes // rows))
        stored.append(Stored(name, tensor.kind, (rows, columns), data, _order(header, name, rows), vector))
    return stored


def _order(header: Header, name: str, rows: int) -> NDArray[np.intp]:
    """llama.cpp stores queries and keys of a llama as 0, n/2, 1, n/2 + 1, ... within a head of n rows."""
    import numpy as np

    order = np.arange(rows)
    q_heads = header.get("{arch}.attention.head_count")
    heads = {"attn_q": q_heads, "attn_k": header.get("{arch}.attention.head_count_kv", q_heads)}
    found = heads.get(name.split(".")[-2]) if header.architecture == "llama" else None
    if isinstance(found, list):  # the same in all layers
        found = found[0]
    return order.reshape(found, -1, 2).swapaxes(1, 2).reshape(-1) if found else order


def sample(shape: tuple[int, ...], values: Callable[[NDArray[np.intp]], Floats]) -> Floats:
    """A few rows, the mean of each group of weights taken away: zero points make no difference."""
    import numpy as np

    rows = np.linspace(0, shape[0] - 1, 16).astype(np.intp)
    grouped = values(rows).reshape(len(rows), -1, math.gcd(16, shape[1]))
    centred: Floats = grouped - grouped.mean(-1, keepdims=True)
    return centred
