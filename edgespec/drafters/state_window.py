"""The target's hidden states of its last rows: what a block drafter reads.

Between rounds the target has read every token but the last one. The newest row's states gave that token. They may be
missing, since nobody shows the states of rows that the target held already. Then there is nothing to draft from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgespec.protocols import common_prefix
from edgespec.sampling_params import SamplingParams
from edgespec.types import Hidden

_ROOM = 4
"""windows in the buffer: it is moved to the front once in so many windows"""


class StateWindow:
    """Up to ``length`` rows of the given layers. The methods are called as those of ``protocols.Drafter`` are.

    >>> window = StateWindow((4,), length=2, width=1)
    >>> window.observe(0, [7, 8, 9], {4: np.array([[1.0], [2.0], [3.0]], np.float32)})
    >>> window.begin([7, 8, 9, 5], SamplingParams())
    >>> window.rows.tolist(), window.count(4), window.count(5)
    ([[[2.0]], [[3.0]]], 2, 0)

    Rows that the target takes back are gone, and those in front of them stay:

    >>> window.observe(2, [6], {4: np.array([[9.0]], np.float32)})
    >>> window.rows.tolist(), window.count(4)
    ([[[2.0]], [[9.0]]], 2)

    The states of another text are not used:

    >>> window.begin([8, 8, 9, 5], SamplingParams())
    >>> window.count(4)
    0
    """

    def __init__(self, layers: Sequence[int], *, length: int, width: int) -> None:
        self._layers = tuple(layers)
        self._length = length
        self._buffer = np.zeros((_ROOM * length, len(self._layers), width), np.float32)
        self._end = length  # rows of the window are in front of it; those that do not exist are zeros or old ones
        self._held = 0
        self._least = 0  # rows in front of it do not count
        self._first = 0
        self._tokens: list[int] = []  # those that the target has read, from row ``_first`` on

    @property
    def rows(self) -> NDArray[np.float32]:
        """``(length, layers, width)`` newest last. A view, valid until the next call of ``observe``."""
        return self._buffer[self._end - self._length : self._end]

    def count(self, length: int) -> int:
        """How many of the rows exist, if the newest one gave the last token of a context of this length; else 0."""
        if self._first + len(self._tokens) != length - 1:
            return 0
        return max(0, min(self._held, length - 1 - self._least))

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        """Forgets the states of another text. By rejection a text depends on what is drafted, and so must what is
        drafted not depend on which rows were held: there the states come from its own rounds alone."""
        self._take_back(self._first + common_prefix(self._tokens, context[self._first : -1]))
        self._least = len(context) - 1 if params.rejects else 0
        if self._first:
            self._held = 0

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        """Copies the states of the last of ``tokens``."""
        if not self._first <= start <= self._first + len(self._tokens):  # nobody told what was read before
            self._first, self._tokens, self._held = start, [], 0
        self._take_back(start)
        self._tokens += tokens
        new = min(len(tokens), self._length)
        if self._end + new > len(self._buffer):
            self._buffer[: self._length] = self.rows
            self._end = self._length
        for column, layer in enumerate(self._layers):
            self._buffer[self._end : self._end + new, column] = hidden[layer][len(tokens) - new :]
        self._end += new
        self._held = min(self._length, self._held + new)

    def _take_back(self, start: int) -> None:
        """Forget the rows from position ``start`` on."""
        behind = self._first + len(self._tokens) - start
        del self._tokens[start - self._first :]
        self._held = max(0, self._held - behind)
        self._end -= behind
        if self._end < self._length:
            rows = self._buffer[: max(0, self._end)].copy()
            self._buffer[self._length - len(rows) : self._length] = rows
            self._end = self._length

    def reset(self) -> None:
        self._first, self._tokens, self._held, self._least = 0, [], 0, 0
