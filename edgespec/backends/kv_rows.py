"""The books of a KV cache that every backend keeps: which token each committed row belongs to, crop and keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

_LEAST_RESERVE = 32
"""rows of a first forward that are kept free of the prompt, at least; so what is read before does not depend on how far
a policy means to draft, unless it means to go very far"""


def may_defer(max_width: int, reserve: int | None) -> int:
    """Rows of a prompt, at most, that the next forward may run. reserve: tokens of its own; None: leave it none."""
    return 0 if reserve is None else max(0, max_width - max(_LEAST_RESERVE, reserve))


class KVRows(ABC):
    """Committed rows of one text. A subclass stores the rows and moves them; crop only moves a length.

    Worked example, a cache of 5 rows after a forward of a tree of 4 rows at 5..8, accepted path (0, 3):

        keep((0, 3))   row 8 moves to 6   tokens = first 5, row 5's, row 8's   length = 7

    deferred: the end of a prompt, whose rows the next forward writes in front of its own.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens: list[int] = []
        self.deferred: tuple[int, ...] = ()
        self._start = 0  # length before the last forward
        self._branched = False  # the last rows are a tree of which no path was kept yet

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    @abstractmethod
    def nbytes(self) -> int: ...

    def defer(self, tokens: Sequence[int]) -> None:
        """Until the next forward; ``crop`` forgets these too."""
        assert self.length + len(tokens) <= self.capacity, "a prompt past the context"
        self.deferred = tuple(tokens)

    def append(self, tokens: Sequence[int], *, branched: bool = False) -> None:
        """Rows for what was deferred and for ``tokens`` have been written behind the committed ones. For the owning
        model, after its forward: whatever interrupts it, the books never name a row that is not there.
        """
        assert self.length + len(self.deferred) + len(tokens) <= self.capacity, "a forward past the context"
        self.tokens.extend(self.deferred)
        self.deferred = ()
        self._start = self.length
        self._branched = branched
        self.tokens.extend(tokens)

    def drop_unverified_tree(self) -> None:
        """Drop a tree of which no path was kept (an interrupted round): its rows are no text."""
        if self._branched:
            self._branched = False
            self.crop(min(self._start, self.length))

    def crop(self, length: int) -> None:
        assert 0 <= length <= self.length, (length, self.length)
        self.deferred = ()
        del self.tokens[length:]
        if length <= self._start:
            self._branched = False

    def keep(self, path: Sequence[int]) -> None:
        start = self._start
        sources = [start + row for row in path]
        for target, source in enumerate(sources, start):
            assert target <= source < self.length, "not a path of the last forward"
            if source != target:
                self._move(source, target)
                self.tokens[target] = self.tokens[source]
        self.crop(start + len(path))
        self._branched = False

    def reset(self) -> None:
        self.crop(0)

    @abstractmethod
    def _move(self, source: int, target: int) -> None:
        """Copy one physical row, target < source."""
