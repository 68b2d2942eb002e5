"""How many tokens to draft this round. State machines over what happened; no clock inside.

The one that decides from measured costs is the arbiter (drafters.arbiter): how far and by whom is one question.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from edgespec.errors import SettingError
from edgespec.types import Round


@runtime_checkable
class DraftLength(Protocol):
    """``next`` before a round, ``update`` after it; one generation at a time."""

    def next(self, most: int, forced: int = 0) -> int:
        """k for this round, 0 <= k <= most (what budget and context leave room for).

        forced: tokens that are verified in front of the draft, and stand for certain.
        """

    def width(self, n: int, context: int) -> int:
        """How wide to run the target's forward of n tokens behind so many rows, n at least (see ``Model.width``)."""

    def update(self, round_: Round) -> None:
        """Learn from a finished round."""


class Fixed:
    """Always k tokens. learner: who is told of the rounds none the less."""

    def __init__(self, k: int, learner: DraftLength | None = None) -> None:
        if k < 0:
            raise SettingError("number of draft tokens", got=k, allowed="0 or more")
        self.k = k
        self._learner = learner

    def next(self, most: int, forced: int = 0) -> int:
        return min(self.k, most)

    def width(self, n: int, context: int) -> int:
        return self._learner.width(n, context) if self._learner and self.k else n

    def update(self, round_: Round) -> None:
        if self._learner is not None:
            self._learner.update(round_)


class Heuristic:
    """The rule of transformers' assisted generation: two more after a fully accepted draft, one less after a miss.

    Never below 1: a zero would never be left again, since only drafting teaches this rule anything.
    """

    def __init__(self, k: int = 4, longest: int = 16) -> None:
        self.k = k
        self.longest = longest

    def next(self, most: int, forced: int = 0) -> int:
        return min(self.k, most)

    def width(self, n: int, context: int) -> int:
        return n

    def update(self, round_: Round) -> None:
        if round_.proposed == 0:
            return
        if round_.accepted == round_.proposed:
            self.k = min(self.k + 2, self.longest)
        else:
            self.k = max(self.k - 1, 1)
