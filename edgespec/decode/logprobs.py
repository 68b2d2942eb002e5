"""Log probabilities of the committed tokens, from the logits that verified them.

They are the target's own: before temperature, penalties, bias and a constraint. The forward that verifies a draft has a
row for each token it commits. So they take no forward more, and are those of plain decoding.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from edgespec.types import Logits, TokenLogprobs, Verdict


class Logprobs:
    """Of one generation. top: how many of the most likely tokens are named at each place. queue: of the tokens that
    were committed and not taken yet."""

    def __init__(self, top: int) -> None:
        self._top = top
        self.queue: deque[TokenLogprobs] = deque()

    def commit(self, verdict: Verdict, logits: Logits) -> None:
        """logits: of the forward that was verified, ``(1 + n, vocab)``."""
        for row, token in zip(verdict.path, verdict.tokens, strict=True):
            self.queue.append(token_logprobs(logits[row], token, self._top))


def token_logprobs(logits: Logits, token: int, top: int) -> TokenLogprobs:
    """Of the token that was chosen from ``(vocab,)`` logits. Of equally likely ones the lower id comes first, as in a
    greedy choice.

    >>> found = token_logprobs(np.log(np.array([.1, .6, .3], np.float32)), 0, top=2)
    >>> round(found.logprob, 3), [(token, round(logprob, 3)) for token, logprob in found.top]
    (-2.303, [(1, -0.511), (2, -1.204)])
    """
    row = np.asarray(logits, dtype=np.float64)
    row = row - row.max()
    row = row - np.log(np.exp(row).sum())
    top = min(top, len(row))
    best = np.flatnonzero(row >= np.partition(row, -top)[-top]) if top else np.zeros(0, np.intp)
    best = best[np.lexsort((best, -row[best]))][:top]
    return TokenLogprobs(token, float(row[token]), tuple((int(each), float(row[each])) for each in best))
