"""The KV blocks of a paged graph: one tensor per layer for keys and one for values, cut into blocks of rows.

Shapes come from the compiled model: ``(blocks, heads, rows, width)`` on CPU with 32 rows a block, other on GPU. One
text uses blocks 0, 1, 2, ... in order, so the block table is a range and a row's place is its position.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.engine_model import LONGEST_PAD, LayeredCache
from edgespec.backends.kv_blocks import Block, BlockCopies
from edgespec.backends.openvino.runtime import ov
from edgespec.errors import BackendError, wrap_errors

_GROWTH = 1.25


class PagedCache(BlockCopies, LayeredCache):
    """Grows on demand; rolling back moves a length and touches no memory."""

    def __init__(
        self, core: ov.Core, compiled: ov.CompiledModel, request: ov.InferRequest, device: str, capacity: int
    ) -> None:
        super().__init__(capacity)
        self._request = request
        self._on_cpu = device.startswith("CPU")
        self._context = None if self._on_cpu else core.get_default_context(device)
        self.rows_per_block = self.block_rows = 32 if self._on_cpu else 16
        ports = [port for port in compiled.inputs if "_cache." in port.get_any_name()]
        shapes = [[d.get_length() for d in list(port.partial_shape)[1:]] for port in ports]
        if not ports:
            raise BackendError("the compiled model has no KV cache inputs", hint="is it a causal language model?")
        # A device's own tensor can be set by the name of its input only.
        self._kinds = {
            port.get_any_name(): (port.element_type, shape) for port, shape in zip(ports, shapes, strict=True)
        }
        assert len(self._kinds) == len(ports), "two KV cache inputs of one name"
        if self._on_cpu and any(self.rows_per_block not in (shape[1], shape[1] - 8) for shape in shapes):
            raise BackendError("unexpected KV block shape", got=shapes[0], allowed="32 rows a block")
        self._tensors: dict[str, Any] = {}
        self._bytes: dict[str, int] = {}  # of the whole memory, of which a tensor may be a part
        self.blocks = 0
        self.rows_can_move = self._on_cpu and all(shape[1] == self.rows_per_block for shape in shapes)
        """False where a block holds scales that its rows share: a row means nothing in another block"""

    @property
    def nbytes(self) -> int:
        return sum(list(self._bytes.values()))

    def reserve(self, rows: int) -> None:
        """Have room for ``rows`` rows. The engine does not check its block table: never run a forward without this."""
        needed = -(-rows // self.rows_per_block)
        if needed <= self.blocks:
            return
        # Some rows more than the context, for the pad of a last forward.
        most = -(-(self.capacity + LONGEST_PAD) // self.rows_per_block)
        assert needed <= most, "a forward past the context"
        self._grow(min(most, max(needed, int(self.blocks * _GROWTH) + 1)))

    def _grow_layers(self, blocks: int) -> None:
        """One layer at a time: the peak is one layer's copy, not a second cache."""
        with wrap_errors(BackendError, "no memory for the KV cache", hint="use a smaller --context-length"):
            for name, (element_type, shape) in self._kinds.items():
                new = self._allocate(element_type, [blocks, *shape], self._tensors.get(name))
                self._request.set_tensor(name, new)
                self._tensors[name], self._bytes[name] = new, int(new.get_byte_size())
        self.blocks = blocks

    def _put_back(self) -> bool:
        """Each layer that was grown has its first blocks again, in the memory that it has now."""
        if not self.blocks:
            return False
        with wrap_errors(BackendError, "cannot put the KV cache back"):
            for name, tensor in self._tensors.items():
                size = list(tensor.get_shape())
                if size[0] > self.blocks:
                    part = ov.Tensor if self._context is None else ov.RemoteTensor
                    end = ov.Coordinate([self.blocks, *size[1:]])
                    self._tensors[name] = part(tensor, ov.Coordinate([0] * len(size)), end)
                self._request.set_tensor(name, self._tensors[name])
        return True

    def _let_go(self) -> None:
        self._tensors.clear()
        self._bytes.clear()
        self.blocks = 0

    def _allocate(self, element_type: ov.Type, shape: list[int], old: Any) -> Any:
        new = ov.Tensor(element_type, ov.Shape(shape))
        done = 0
        if old is not None and self._context is None:
            done = old.shape[0]
            new.data[:done] = old.data
        new.data[done:] = 0  # masked rows are multiplied by 0: they must not be NaN
        return new if self._context is None else self._on_device(new, old)

    def _on_device(self, zeros: ov.Tensor, old: Any) -> Any:
        """A tensor of the device's own, which begins as the old one does."""
        assert self._context is not None
        new = self._context.create_tensor(zeros.element_type, zeros.get_shape(), {})
        new.copy_from(zeros)
        if old is not None:
            size = list(old.get_shape())
            ov.RemoteTensor(new, ov.Coordinate([0] * len(size)), ov.Coordinate(size)).copy_from(old)
        return new

    def repeat(self, length: int) -> bool:
        return self.rows_can_move and self._repeat(length)

    @property
    def can_copy(self) -> bool:
        return self._on_cpu

    def copy_block(self, index: int) -> Block:
        return [np.array(tensor.data[index]) for tensor in self._tensors.values()]

    def _put_block(self, index: int, block: Block) -> None:
        for tensor, held in zip(self._tensors.values(), block, strict=True):
            tensor.data[index] = held

    def _move(self, source: int, target: int) -> None:
        assert self.rows_can_move, "trees need rows that can move"
        (a, i), (b, j) = divmod(source, self.rows_per_block), divmod(target, self.rows_per_block)
        for tensor in self._tensors.values():
            data: NDArray[Any] = np.asarray(tensor.data)  # (blocks, heads, rows, width), a view
            data[b, :, j] = data[a, :, i]
