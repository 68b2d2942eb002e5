"""Rows of a KV cache copied out in blocks, and back, so that a prefix is kept while another text is written.

Whole blocks, since an engine may keep what its rows share, such as scales, beside them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from edgespec.backends.kv_rows import KVRows

Block = list[NDArray[Any]]
"""Keys and values of some rows, one array for each tensor of a cache. Nobody writes to it."""


class BlockCopies(KVRows):
    """A cache whose blocks can be copied. It must hold no tree that was not verified."""

    block_rows = 32
    """rows of a block"""

    @property
    def can_copy(self) -> bool:
        """Whether this one can: it may depend on the device."""
        return True

    @abstractmethod
    def copy_block(self, index: int) -> Block:
        """The rows from ``index * block_rows`` on. Those that are not committed may be anything."""

    @abstractmethod
    def _put_block(self, index: int, block: Block) -> None:
        """Write what ``copy_block`` returned. There is room for it."""

    @abstractmethod
    def reserve(self, rows: int) -> None:
        """Have room for this many rows."""

    def restore(self, tokens: Sequence[int], blocks: Sequence[Block]) -> None:
        """Hold ``tokens``. blocks: the last ones of them. What stands before is held already, for the same tokens.

        A block means the tokens in front of it, too: it may only come back behind the same ones.
        """
        first = -(-len(tokens) // self.block_rows) - len(blocks)
        kept = first * self.block_rows
        assert list(tokens[:kept]) == self.tokens[:kept], "rows that are not held"
        self.crop(kept)
        self.reserve(len(tokens))
        for number, block in enumerate(blocks, first):
            self._put_block(number, block)
        self.append(tokens[kept:])
