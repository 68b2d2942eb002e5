"""Figures that follow the last rounds: of what is seen, each new outcome counts a little more than the one before."""

from __future__ import annotations

from dataclasses import dataclass

# Rounds that count as lately: texts change their kind within a paragraph or two. 25 and 100 do as well.
LATELY_ROUNDS = 50
KEPT = 1 - 1 / LATELY_ROUNDS
"""weight of what was known when something new is seen"""

# Outcomes that a first guess is worth. With 5 a useless draft costs 4 % of the first text instead of 1.5.
_GUESS_OUTCOMES = 2.0

# Outcomes that earlier texts are worth when a new one begins. With 2 half a percent is lost: too much is learned anew.
_TEXTS_OUTCOMES = 5.0


class Rate:
    """A share that follows the last outcomes of a text; a new text begins from what it was over all.

    guess: what it is taken for at first.
    """

    def __init__(self, guess: float) -> None:
        self._hits, self._trials = guess * _GUESS_OUTCOMES, _GUESS_OUTCOMES
        self._all_hits, self._all_trials = self._hits, self._trials

    @property
    def chance(self) -> float:
        return self._hits / self._trials

    def begin(self) -> None:
        self._trials = min(self._all_trials, _TEXTS_OUTCOMES)
        self._hits = self._trials * self._all_hits / self._all_trials

    def update(self, hit: bool) -> None:
        self._hits = self._hits * KEPT + hit
        self._trials = self._trials * KEPT + 1.0
        self._all_hits += hit
        self._all_trials += 1.0


@dataclass
class Pace:
    """Tokens a second of the last rounds."""

    tokens: float = 0.0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def update(self, tokens: int, seconds: float) -> None:
        self.tokens = self.tokens * KEPT + tokens
        self.seconds = self.seconds * KEPT + seconds
