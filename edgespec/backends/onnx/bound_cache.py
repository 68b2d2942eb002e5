"""Keys and values of an ONNX graph whose attention writes new rows into the tensors it reads the earlier ones from.

Past and present are bound to the same memory. Rolling back moves a length: the attention is told how many rows to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from edgespec.backends.engine_model import LONGEST_PAD, LayeredCache
from edgespec.backends.kv_blocks import Block, BlockCopies
from edgespec.errors import BackendError, wrap_errors

FIRST_ROWS, GROWTH = 256, 1.25
"""rows of a cache at first, and by how much it grows: each time all of it is copied"""
SPARE_ROWS = 1
"""exact numerics give the attention two rows at least: one alone takes another kernel. No one reads the second's key"""


class BoundCache(BlockCopies, LayeredCache):
    """A tensor ``(1, heads, rows, size)`` for the keys and one for the values of each layer.

    shapes: heads and size of a head by the name of the input, if the session does not know them. memory: where the
    tensors are, as ONNX Runtime names it.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        binding: Any,
        capacity: int,
        shapes: dict[str, tuple[int, int]] | None = None,
        memory: str = "cpu",
    ) -> None:
        super().__init__(capacity)
        self._binding = binding
        self._memory = memory
        inputs = {port.name: port.shape for port in session.get_inputs() if port.name.startswith("past_key_values.")}
        self._shapes = shapes or {name: (shape[1], shape[3]) for name, shape in inputs.items()}
        self._tensors: dict[str, NDArray[np.float32]] = {}
        self._values: dict[str, OrtValue] = {}  # the same, where the device has memory of its own
        self.rows = 0

    @property
    def nbytes(self) -> int:
        shapes = [array.shape for array in list(self._tensors.values())]
        shapes += [tuple(value.shape()) for value in list(self._values.values())]
        return sum(4 * prod(shape) for shape in shapes)

    def reserve(self, rows: int) -> None:
        """The engine writes where it is told to: never run a forward without this."""
        most = self.capacity + LONGEST_PAD
        assert rows <= most + SPARE_ROWS, "a forward past the context"
        if rows <= self.rows:
            return
        self._grow(min(most + SPARE_ROWS, max(rows, FIRST_ROWS, int(self.rows * GROWTH))))

    def _grow_layers(self, rows: int) -> None:
        """One layer at a time: the peak is one layer's copy, not a second cache. Its keys and values have one size."""
        with wrap_errors(BackendError, "no memory for the KV cache", hint="use a smaller --context-length"):
            for _, names in groupby(self._shapes, lambda name: name.rpartition(".")[0]):
                new: dict[str, NDArray[np.float32]] = {}
                for name in names:
                    heads, size = self._shapes[name]
                    new[name] = self._allocate((1, heads, rows, size), self._held(name))
                if self._memory == "cpu":
                    self._tensors |= new
                else:
                    self._values |= {
                        name: OrtValue.ortvalue_from_numpy(array, self._memory, 0) for name, array in new.items()
                    }
                for name in new:
                    self._bind(name)
        self.rows = rows

    def _bind(self, name: str) -> None:
        """The engine reads and writes what is held."""
        shape: Sequence[int]
        if self._memory == "cpu":
            shape, place = self._tensors[name].shape, self._tensors[name].ctypes.data
        else:
            shape, place = self._values[name].shape(), self._values[name].data_ptr()
        bound = (self._memory, 0, np.float32, shape, place)
        self._binding.bind_input(name, *bound)
        self._binding.bind_output(name.replace("past_key_values", "present"), *bound)

    def _put_back(self) -> bool:
        """All that is held, each layer in the size that it has: the engine takes layers of two sizes."""
        with wrap_errors(BackendError, "cannot put the KV cache back"):
            for name in self._shapes if self.rows else ():
                self._bind(name)
        return self.rows > 0

    def _let_go(self) -> None:
        self._tensors.clear()
        self._values.clear()
        self.rows = 0

    def _held(self, name: str) -> NDArray[np.float32] | None:
        value = self._values.get(name)
        return self._tensors.get(name) if value is None else value.numpy()

    def _allocate(self, shape: tuple[int, ...], old: NDArray[np.float32] | None) -> NDArray[np.float32]:
        new = np.zeros(shape, np.float32)  # zeros: a row nobody wrote must not be a NaN
        if old is not None:
            new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def repeat(self, length: int) -> bool:
        return self.can_copy and self._repeat(length)

    @property
    def can_copy(self) -> bool:
        return self._memory == "cpu"

    def copy_block(self, index: int) -> Block:
        begin = index * self.block_rows
        return [tensor[:, :, begin : begin + self.block_rows].copy() for tensor in self._tensors.values()]

    def _put_block(self, index: int, block: Block) -> None:
        begin = index * self.block_rows
        for tensor, held in zip(self._tensors.values(), block, strict=True):
            rows = min(held.shape[2], self.rows - begin)  # the end of a text: the rest of its block means nothing
            tensor[:, :, begin : begin + rows] = held[:, :, :rows]

    def _move(self, source: int, target: int) -> None:
        for tensor in self._tensors.values():
            tensor[:, :, target] = tensor[:, :, source]
