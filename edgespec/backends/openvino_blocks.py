"""The KV blocks of a paged graph: one tensor per layer for keys and one for values, cut into blocks of rows.

Shapes come from the compiled model: ``(blocks, heads, rows, width)`` on CPU with 32 rows a block, other on GPU. One
text uses blocks 0, 1, 2, ... in order, so the block table is a range and a row's place is its position.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.padded import LONGEST_PAD, GrowingCache
from edgespec.engine import ov
from edgespec.errors import BackendError, mapped

_GROWTH = 1.25


class PagedCache(GrowingCache):
    """Grows on demand; rolling back moves a length and touches no memory."""

    def __init__(
        self, core: ov.Core, compiled: ov.CompiledModel, request: ov.InferRequest, device: str, capacity: int
    ) -> None:
        super().__init__(capacity)
        self._request = request
        self._on_cpu = device.startswith("CPU")
        self._context = None if self._on_cpu else core.get_default_context(device)
        self.rows_per_block = 32 if self._on_cpu else 16
        self._ports = [port for port in compiled.inputs if "_cache." in port.get_any_name()]
        self._shapes = [[d.get_length() for d in list(port.partial_shape)[1:]] for port in self._ports]
        if not self._ports:
            raise BackendError("the compiled model has no KV cache inputs", hint="is it a causal language model?")
        if self._on_cpu and any(self.rows_per_block not in (shape[1], shape[1] - 8) for shape in self._shapes):
            raise BackendError("unexpected KV block shape", got=self._shapes[0], allowed="32 rows a block")
        self._tensors: list[Any] = []
        self.blocks = 0
        self.rows_can_move = self._on_cpu and all(shape[1] == self.rows_per_block for shape in self._shapes)
        """False where a block holds scales that its rows share: a row means nothing in another block"""

    @property
    def nbytes(self) -> int:
        return sum(int(tensor.get_byte_size()) for tensor in self._tensors)

    def ensure(self, rows: int) -> None:
        """Have room for ``rows`` rows. The engine does not check its block table: never run a forward without this."""
        needed = -(-rows // self.rows_per_block)
        if needed <= self.blocks:
            return
        # Some rows more than the context, for the pad of a last forward.
        most = -(-(self.capacity + LONGEST_PAD) // self.rows_per_block)
        assert needed <= most, "a forward past the context"
        try:
            self._grow(min(most, max(needed, int(self.blocks * _GROWTH) + 1)))
        except BaseException:  # Ctrl-C or no memory with half the layers grown: begin again from nothing
            self._tensors.clear()
            self.blocks = 0
            self.reset()
            raise

    def _grow(self, blocks: int) -> None:
        """One layer at a time: the peak is one layer's copy, not a second cache."""
        old = self._tensors or [None] * len(self._ports)
        with mapped(BackendError, "no memory for the KV cache", hint="use a smaller --context-length"):
            for index, (port, shape) in enumerate(zip(self._ports, self._shapes, strict=True)):
                new = self._allocate(port.element_type, [blocks, *shape], old[index])
                self._request.set_tensor(port, new)
                old[index] = new
        self._tensors = old
        self.blocks = blocks

    def _allocate(self, element_type: ov.Type, shape: list[int], old: Any) -> Any:
        if self._context is not None:
            new = self._context.create_tensor(element_type, ov.Shape(shape), {})
            if old is not None:
                ov.RemoteTensor(new, ov.Coordinate([0] * len(shape)), ov.Coordinate(list(old.shape))).copy_from(old)
            return new
        new = ov.Tensor(element_type, ov.Shape(shape))
        done = 0
        if old is not None:
            done = old.shape[0]
            new.data[:done] = old.data
        new.data[done:] = 0  # masked rows are multiplied by 0: they must not be NaN
        return new

    def _move(self, source: int, target: int) -> None:
        assert self.rows_can_move, "trees need rows that can move"
        (a, i), (b, j) = divmod(source, self.rows_per_block), divmod(target, self.rows_per_block)
        for tensor in self._tensors:
            data: NDArray[Any] = np.asarray(tensor.data)  # (blocks, heads, rows, width), a view
            data[b, :, j] = data[a, :, i]
