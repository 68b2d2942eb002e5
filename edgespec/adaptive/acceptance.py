"""How likely a drafted token is to stand: by the drafter's own score of it, and by its place in the draft.

Both are learned from what the target committed. A place behind the first miss was never looked at and teaches
nothing; a draft that was accepted whole says "at least", so places behind its end stay as they were (censoring).
"""

from __future__ import annotations

import math

from edgespec.adaptive.recent import Rate

# Enough to tell apart what a drafter is sure of and what not. 20 do the same; 1 and 5 lose half a percent.
_SCORE_BINS = 10


class ByScore:
    """Chance of a token with a certain score in 0..1. Scores are sorted into bins of equal log-odds; at first a score
    is taken for a probability."""

    def __init__(self) -> None:
        self._rates = [Rate(1 / (1 + math.exp(-_log_odds_of(index)))) for index in range(_SCORE_BINS)]

    def begin(self) -> None:
        """Another text."""
        for rate in self._rates:
            rate.begin()

    def chance(self, score: float) -> float:
        return self._rates[_bin(score)].chance

    def update(self, score: float, accepted: bool) -> None:
        self._rates[_bin(score)].update(accepted)


class ByPosition:
    """Chance of the i-th token, given that all before it stood. A place never reached is as the one before it; the
    first one is as likely as not."""

    def __init__(self) -> None:
        self._rates = [Rate(0.5)]

    def begin(self) -> None:
        """Another text."""
        for rate in self._rates:
            rate.begin()

    def chance(self, place: int) -> float:
        """place: 0 is the first."""
        return self._rates[min(place, len(self._rates) - 1)].chance

    def update(self, place: int, accepted: bool) -> None:
        while len(self._rates) <= place:
            self._rates.append(Rate(self.chance(len(self._rates))))
        self._rates[place].update(accepted)


def _bin(score: float) -> int:
    score = min(score, 1 - 1e-6) if score > 1e-6 else 1e-6  # of an overflow too, which is no number
    return min(max(math.floor(math.log(score / (1 - score))) + _SCORE_BINS // 2, 0), _SCORE_BINS - 1)


def _log_odds_of(index: int) -> float:
    return index - _SCORE_BINS // 2 + 0.5
