"""The KV cache inside an engine: states that only grow, and a list of where the text is in them.

In a masked graph a row that went stays in the states, and no row sees it. So a crop changes a length, and ``keep``
moves a number, not keys and values. Rows that went cost attention time all the same. When they are too many, the states
are rewritten without them, between two forwards. In a cut graph the engine drops them (see ``stateful_graph``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.engine_model import LONGEST_PAD, GrowingCache
from edgespec.backends.openvino.runtime import ov
from edgespec.errors import BackendError, wrap_errors

_MOST_WASTE = 256
"""rows that went and are still in the states. Attention over so many is a small part of a forward, and to rewrite the
states takes as long as several (docs/log/engines.md)."""
_SHARE = 4
"""or a quarter of the text, if that is more"""


class EngineStates(GrowingCache):
    """bytes_per_row: of all states."""

    def __init__(self, request: ov.InferRequest, capacity: int, *, masked: bool, bytes_per_row: int) -> None:
        super().__init__(capacity)
        self.masked = masked
        self.most_waste = _MOST_WASTE
        self._request = request
        self._bytes_per_row = bytes_per_row
        self._places = np.zeros(capacity + LONGEST_PAD, np.int64)  # of each row of the text in the states
        self._held: int | None = 0  # rows in the states; None: not known
        self._forward = 0, 0  # where the rows of the last forward begin in the states, and how many these hold then

    @property
    def nbytes(self) -> int:
        return self._bytes_per_row * (self._held or self.length)

    @property
    def places(self) -> NDArray[np.int64]:
        """Where the rows of the text are in the states."""
        return self._places[: self.length]

    def reserve(self, rows: int) -> None:
        """Nothing is allocated here: the engine does it. It is the moment before a forward, when the states may
        change."""
        if rows > len(self._places):  # costs are measured behind more rows than a short context has
            self._places = np.pad(self._places, (0, rows - len(self._places)))
        held = self._rows_held()
        if held < 0:  # a forward failed or was dropped, and no row of the text is left
            with wrap_errors(BackendError, "cannot reset the KV cache"):
                self._request.reset_state()
            self._held = 0
        elif self.masked and held - self.length > max(self.most_waste, self.length // _SHARE):
            self._rewrite()

    def begin(self, width: int) -> int:
        """A forward of so many rows is about to run. Returns where they will be in the states."""
        first = self._rows_held() if self.masked else self.length
        self._forward = first, first + width
        self._held = None  # until it is known that it ran
        return first

    def append(self, tokens: Sequence[int], *, branched: bool = False) -> None:
        first, held = self._forward
        rows = len(self.deferred) + len(tokens)
        self._places[self.length : self.length + rows] = np.arange(first, first + rows)
        self._held = held
        super().append(tokens, branched=branched)

    def forget(self) -> None:
        """A forward failed. Some states may have its rows and others not: the text has to be read again."""
        self.reset()
        self._held = None

    def _rows_held(self) -> int:
        if self._held is None and self.length == 0:
            return -1
        if not self.masked:
            return self._held or 0  # nobody asks: the engine cuts
        if self._held is None:  # a forward was begun, and nobody took its result: did it run?
            with wrap_errors(BackendError, "cannot read the KV cache"):
                self._held = int(self._request.query_state()[0].state.shape[2])
        return self._held

    def _rewrite(self) -> None:
        """The states without the rows that went. One is left if the text is empty: the GPU plugin's ``reset_state``
        was seen to spoil the next text."""
        kept = self.places.copy() if self.length else np.zeros(1, np.int64)
        try:
            with wrap_errors(BackendError, "no memory for the KV cache", hint="use a smaller --context-length"):
                for state in self._request.query_state():
                    rows: NDArray[Any] = np.asarray(state.state.data)[:, :, kept]
                    state.state = ov.Tensor(np.ascontiguousarray(rows))
        except BaseException:  # Ctrl-C or no memory with half of them written: begin again from nothing
            self.forget()
            raise
        self._places[: self.length] = np.arange(self.length)
        self._held = len(kept)

    def _move(self, source: int, target: int) -> None:
        assert self.masked, "trees need a mask of their own"
        self._places[target] = self._places[source]
