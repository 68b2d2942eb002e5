"""How likely a drafted token is to stand: by the drafter's own score of it, and by its place in the draft.

Both are learned from what the target committed. A place behind the first miss was never looked at and teaches
nothing; a draft that was accepted whole says "at least", so places behind its end stay as they were (censoring).
"""

from __future__ import annotations

import math

_FORGET, _FORGET_TEXTS = 0.98, 0.998
"""weight of what was known when something new is seen, in this text and over all: the last 50 and the last 500 count"""
_PRIOR, _PRIOR_TEXTS = 2.0, 10.0
"""observations that a first guess is worth, and what was seen in earlier texts"""
_BINS = 10


class Rate:
    """A share that follows the last outcomes of a text; a new text begins from what it was over all."""

    def __init__(self, guess: float) -> None:
        self._hits, self._trials = guess * _PRIOR, _PRIOR
        self._all_hits, self._all_trials = self._hits, self._trials

    @property
    def value(self) -> float:
        return self._hits / self._trials

    def begin(self) -> None:
        self._hits, self._trials = _PRIOR_TEXTS * self._all_hits / self._all_trials, _PRIOR_TEXTS

    def update(self, hit: bool) -> None:
        self._hits = self._hits * _FORGET + hit
        self._trials = self._trials * _FORGET + 1.0
        self._all_hits = self._all_hits * _FORGET_TEXTS + hit
        self._all_trials = self._all_trials * _FORGET_TEXTS + 1.0


class ByScore:
    """Chance of a token with a certain score in 0..1. Scores are sorted into bins of equal log-odds; at first a score
    is taken for a probability, times ``trust``."""

    def __init__(self, trust: float = 1.0) -> None:
        self._rates = [Rate(trust / (1 + math.exp(-_log_odds_of(index)))) for index in range(_BINS)]

    def begin(self) -> None:
        """Another text."""
        for rate in self._rates:
            rate.begin()

    def chance(self, score: float) -> float:
        return self._rates[_bin(score)].value

    def update(self, score: float, accepted: bool) -> None:
        self._rates[_bin(score)].update(accepted)


class ByPosition:
    """Chance of the i-th token, given that all before it stood. A place never reached is as the one before it."""

    def __init__(self, guess: float = 0.5, places: int = 16) -> None:
        self._guess = guess
        self._rates: list[Rate] = []
        self._places = places

    def begin(self) -> None:
        """Another text."""
        for rate in self._rates:
            rate.begin()

    def chance(self, place: int) -> float:
        """place: 0 is the first."""
        if not self._rates:
            return self._guess
        return self._rates[min(place, len(self._rates) - 1)].value

    def update(self, place: int, accepted: bool) -> None:
        place = min(place, self._places - 1)
        while len(self._rates) <= place:
            self._rates.append(Rate(self.chance(len(self._rates))))
        self._rates[place].update(accepted)


def _bin(score: float) -> int:
    score = min(max(score, 1e-6), 1 - 1e-6)
    return min(max(math.floor(math.log(score / (1 - score))) + _BINS // 2, 0), _BINS - 1)


def _log_odds_of(index: int) -> float:
    return index - _BINS // 2 + 0.5
