"""What a draft is worth on held-out text, without a decoding loop: from which of its tokens are right.

``right``: of one text ``(n, k)``; line p is a round behind answer token p, and column i says whether its token i is
answer token p + 1 + i. Behind the end of the text it is False.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUND = 4
"""drafted tokens a round"""


@dataclass(frozen=True)
class Judged:
    """agreement: share of held-out tokens that are the draft's first choice too. block_efficiency: tokens a forward of
    the target at k = ``ROUND``. by_position: of the rounds whose tokens before i were right, share that had i right."""

    agreement: float
    block_efficiency: float
    by_position: tuple[float, ...] = ()

    @classmethod
    def of(cls, right: Sequence[NDArray[np.bool_]], agreement: float | None = None) -> Judged:
        """agreement: None for that of the first position."""
        runs = [np.logical_and.accumulate(text, axis=1) for text in right if len(text)]
        if not runs:
            return cls(agreement or 0.0, 1.0)
        counts = np.concatenate([[sum(len(text) for text in runs)], sum(text.sum(0) for text in runs)])
        shares = tuple(round(float(b / a), 4) if a else 0.0 for a, b in itertools.pairwise(counts))
        return cls(shares[0] if agreement is None else agreement, tokens_a_forward(right, ROUND), shares)


def tokens_a_forward(right: Sequence[NDArray[np.bool_]], k: int) -> float:
    """Of rounds that draft k greedily: one ends at the first token that is wrong, in whose place is the target's."""
    forwards = tokens = 0
    for text in right:
        place = 0
        while place < len(text):
            wrong = np.flatnonzero(~text[place, :k])
            place += (int(wrong[0]) if len(wrong) else min(k, text.shape[1])) + 1
            forwards += 1
        tokens += len(text)
    return tokens / forwards if forwards else 1.0


def ahead(agrees: NDArray[np.bool_], k: int) -> NDArray[np.bool_]:
    """``right`` of a draft whose choice at a token does not depend on where the round began. agrees: ``(n + 1,)``."""
    padded = np.concatenate([agrees[1:], np.zeros(k, np.bool_)])
    return np.lib.stride_tricks.sliding_window_view(padded, k)[: max(0, len(agrees) - 1)]


def block_efficiency(texts: Sequence[NDArray[np.bool_]], k: int) -> float:
    """``tokens_a_forward`` of such a draft. A first round has drafted nothing, as if the prompt had just been read.

    >>> block_efficiency([np.array([True, True, True, False, True, True])], k=2)
    1.6666666666666667
    """
    return tokens_a_forward([ahead(text, k) for text in texts], k)
