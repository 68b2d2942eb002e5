"""What lookups in the text of a generation share: they may read another text in the place of the prompt.

A prompt for the text of a hole is a text in another order. What stands before the hole is not in front of what is
written, and may be only a part of it. A lookup that read such a prompt would miss the hole's beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.protocols import Drafter


class Lookup(Drafter):
    """A subclass calls ``begin_reading`` in ``begin``, and looks at ``reading(context)`` only."""

    _next: tuple[int, Sequence[int]] = (0, ())
    _anchor: int = 0
    _in_place: Sequence[int] = ()

    def read_as(self, anchor: int, tokens: Sequence[int]) -> None:
        self._next = anchor, tokens

    def begin_reading(self) -> None:
        self._anchor, self._in_place = self._next
        self._next = 0, ()

    def reading(self, context: Sequence[int]) -> Sequence[int]:
        return [*self._in_place, *context[self._anchor :]] if self._anchor else context
