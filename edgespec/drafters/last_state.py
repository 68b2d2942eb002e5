"""The target's hidden states of the last row that it has read: what a drafting head begins from.

Between rounds the target has read every token but the last one. So these are the states that gave the last token. They
may be missing, since nobody shows the states of rows that the target held already. Then there is nothing to draft from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgespec.sampling_params import SamplingParams
from edgespec.types import Hidden


class LastState:
    """Of the given layers. The methods are called as those of ``protocols.Drafter`` are.

    >>> state = LastState((4,))
    >>> state.observe(0, [7, 8], {4: np.array([[1.0], [2.0]], np.float32)})
    >>> state.begin([7, 8, 9], SamplingParams())
    >>> state.after([7, 8, 9]), state.after([7, 8, 9, 9])
    ({4: array([2.], dtype=float32)}, None)

    The states of another text are not used:

    >>> state.begin([8, 8, 9], SamplingParams())
    >>> state.unread_tokens(3)
    0
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self._layers = tuple(layers)
        self._first = 0
        self._tokens: list[int] = []  # those that the target has read from row ``_first`` to the row of the states
        self._states: dict[int, NDArray[np.float32]] = {}

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        """Forgets the states of another text. By rejection a text depends on what is drafted, and so must what is
        drafted not depend on which rows were held: there the states come from its own rounds alone."""
        if params.rejects or self._first or self._tokens != list(context[:-1]):
            self._states = {}

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        """Copies the states of the last of ``tokens``."""
        if not 0 <= start - self._first <= len(self._tokens):  # nobody told what was read before
            self._first, self._tokens = start, []
        self._tokens[start - self._first :] = tokens
        self._states = {layer: hidden[layer][-1].copy() for layer in self._layers}

    def after(self, context: Sequence[int]) -> dict[int, NDArray[np.float32]] | None:
        """The states ``(d,)`` that gave the last token of ``context``, by layer. None: they are missing, or the context
        ends in tokens that a constraint forces and that the target has not read."""
        return self._states if self.unread_tokens(len(context)) else None

    def unread_tokens(self, length: int) -> int:
        """See ``protocols.StepwiseDrafter``: 1, or 0 where the states are missing."""
        return int(bool(self._states) and self._first + len(self._tokens) == length - 1)

    def reset(self) -> None:
        self._first, self._tokens, self._states = 0, [], {}
