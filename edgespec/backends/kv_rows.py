"""The part of a KV cache that is alike on every engine: the token of each committed row, crop and keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

_LEAST_RESERVE = 32
"""rows of a first forward that are kept free of the prompt, at least. So what is read before the first forward does not
depend on how far a policy drafts, unless it drafts very far."""


def may_defer(max_width: int, reserve: int | None) -> int:
    """Most rows of a prompt that the next forward may run. reserve: tokens of its own; None: it may run none of the
    prompt."""
    return 0 if reserve is None else max(0, max_width - max(_LEAST_RESERVE, reserve))


class KVRows(ABC):
    """Committed rows of one text. A subclass stores the rows and moves them. A crop only changes a length.

    Example: a cache of 5 rows after a forward of a tree of 4 rows at 5..8, with the accepted path (0, 3):

        keep((0, 3))   row 8 moves to 6   tokens = first 5, row 5's, row 8's   length = 7

    deferred: the end of a prompt, whose rows the next forward writes in front of its own.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens: list[int] = []
        self.deferred: tuple[int, ...] = ()
        self._start = 0  # length before the last forward
        self._branched = False  # the last rows are a tree, and no path of it was kept yet

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    @abstractmethod
    def nbytes(self) -> int: ...

    def defer(self, tokens: Sequence[int]) -> None:
        """Keep ``tokens`` until the next forward. ``crop`` forgets them too."""
        assert self.length + len(tokens) <= self.capacity, "a prompt past the context"
        self.deferred = tuple(tokens)

    def append(self, tokens: Sequence[int], *, branched: bool = False) -> None:
        """Record rows for the deferred tokens and for ``tokens``, after the committed rows. The owning model calls it
        after its forward. So an interruption never leaves a recorded row that was not written."""
        assert self.length + len(self.deferred) + len(tokens) <= self.capacity, "a forward past the context"
        self.tokens.extend(self.deferred)
        self.deferred = ()
        self._start = self.length
        self._branched = branched
        self.tokens.extend(tokens)

    def drop_unverified_tree(self) -> None:
        """Drop the tree of an interrupted round, of which no path was kept. Its rows are not text."""
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

    def repeat(self, length: int) -> bool:
        """See ``protocols.KVCache``. A subclass can if it can copy rows to any place."""
        return False

    @abstractmethod
    def _move(self, source: int, target: int) -> None:
        """Copy one physical row."""
