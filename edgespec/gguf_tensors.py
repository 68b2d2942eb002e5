"""Weight matrices of a GGUF file, dequantized a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_PART = 1 << 24  # numbers dequantized at a time: 64 MiB


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight of the GGUF file, ``(out, in)``, its rows in the order that the graph wants."""

    name: str
    kind: str
    shape: tuple[int, int]
    data: NDArray[Any]
    """``(out, ...)`` as stored, mapped from the file"""
    order: NDArray[np.intp]

    def rows(self, which: Any) -> Floats:
        import gguf

        data = self.data[self.order[which]]
        values: Floats = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[self.kind])
        return values

    @cached_property
    def sampled(self) -> Floats:
        return sample(self.shape, self.rows)

    def parts(self) -> Iterator[slice]:
        step = max(1, _PART // self.shape[1])
        return (slice(begin, begin + step) for begin in range(0, self.shape[0], step))


def read(path: Path) -> tuple[str, list[Matrix]]:
    """Precision of the file, and its matrices."""
    import numpy as np
    from gguf import GGUFReader, LlamaFileType

    reader = GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    arch = metadata["general.architecture"]
    q_heads = metadata[f"{arch}.attention.head_count"]
    interleaved = {"attn_q": q_heads, "attn_k": metadata.get(f"{arch}.attention.head_count_kv", q_heads)}
    matrices = []
    for tensor in reader.tensors:
        if len(tensor.shape) == 2:
            columns, rows = (int(n) for n in tensor.shape)
            order = np.arange(rows)
            heads = interleaved.get(tensor.name.split(".")[-2]) if arch == "llama" else None
            if heads:  # llama.cpp stores a head of n rows as 0, n/2, 1, n/2 + 1, ...
                order = order.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
            matrices.append(Matrix(tensor.name, tensor.tensor_type.name, (rows, columns), tensor.data, order))
    try:
        precision = LlamaFileType(metadata.get("general.file_type")).name.split("_", 1)[1].lower()  # MOSTLY_Q4_1
    except ValueError:
        precision = "unknown"
    return precision, matrices


def sample(shape: tuple[int, ...], values: Callable[[NDArray[np.intp]], Floats]) -> Floats:
    """A few rows, the mean of each group of weights taken away: zero points make no difference."""
    import numpy as np

    rows = np.linspace(0, shape[0] - 1, 16).astype(np.intp)
    grouped = values(rows).reshape(len(rows), -1, math.gcd(16, shape[1]))
    centred: Floats = grouped - grouped.mean(-1, keepdims=True)
    return centred
