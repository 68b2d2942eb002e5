"""Drafts from the user's own texts, in the spirit of REST (He et al. 2023, arXiv 2311.08252).

The texts are one array of tokens. Its positions are sorted by the tokens *before* them, nearest token first. One binary
search for the end of the context, read backwards, ends beside the position with the longest match. All positions with a
match of that length vote on what follows. REST verifies a tree of the candidates. This drafter proposes the likeliest
chain.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgespec.protocols import Drafter, common_prefix
from edgespec.types import Allowed, Draft

_END = -1  # separates texts; not a token
_VOTERS = 64


class Retrieval(Drafter):
    """Proposes what followed the end of the context in some texts. The index is built once, and takes 8 bytes per
    token.

    texts: token ids of each text. shortest, longest: how many tokens at the end of the context must match, and how many
        are compared. The score of a token is its share of the votes times ``1 - 1 / (1 + tokens matched)``.

    >>> drafter = Retrieval([[1, 2, 3, 4, 5], [9, 2, 3, 7]])
    >>> drafter.propose([1, 2, 3], 4).tokens, drafter.propose([8, 9, 2, 3], 4).tokens, drafter.propose([2, 3], 4).tokens
    ((4, 5), (7,), ())
    """

    name = "retrieval"

    def __init__(self, texts: Iterable[Sequence[int]], *, shortest: int = 3, longest: int = 16) -> None:
        self._shortest, self._longest = shortest, longest
        parts = [np.array([_END])]
        for text in texts:
            parts += [np.asarray(text), parts[0]]
        self._tokens: NDArray[np.int32] = np.concatenate(parts).astype(np.int32)
        self._order = _by_what_ends_there(self._tokens, longest)

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        if k == 0:
            return Draft()
        matched, ends = self._matches(context[: -self._longest - 1 : -1])
        follows = ends + 1
        tokens: list[int] = []
        scores: list[float] = []
        while len(tokens) < k:
            voters = len(follows)
            follows = follows[self._tokens[follows] != _END]
            if not len(follows):
                break
            said = self._tokens[follows]
            token, votes = Counter(said.tolist()).most_common(1)[0]
            tokens.append(token)
            scores.append(votes / voters * (1 - 1 / (1 + matched)))
            follows = follows[said == token] + 1
        return Draft(tuple(tokens), scores=tuple(scores))

    def reset(self) -> None:
        """Does nothing: the files are not the text of a generation."""

    def _matches(self, wanted: Sequence[int]) -> tuple[int, NDArray[np.integer]]:
        """The length of the longest match of a context, given backwards, and the places where such matches end. At most
        ``_VOTERS`` places."""
        wanted = list(wanted)
        place = bisect_left(self._order, wanted, key=self._backwards)
        beside = self._order[max(0, place - 1) : place + 1].tolist()
        length = max((common_prefix(wanted, self._backwards(index)) for index in beside), default=0)
        if length < max(self._shortest, 1):
            return 0, self._order[:0]
        begin = bisect_left(self._order, wanted[:length], key=lambda i: self._backwards(i)[:length])
        end = bisect_right(self._order, wanted[:length], key=lambda i: self._backwards(i)[:length])
        return length, self._order[begin : end : -(-(end - begin) // _VOTERS)]

    def _backwards(self, index: int) -> list[int]:
        """The tokens that end at ``index``, the last one first."""
        tokens: list[int] = self._tokens[max(0, index + 1 - self._longest) : index + 1][::-1].tolist()
        return tokens


def _by_what_ends_there(tokens: NDArray[np.int32], depth: int) -> NDArray[np.int32]:
    """Positions sorted by (at least) ``depth`` tokens that end there, compared from the last one backwards.

    Doubling (Manber and Myers 1993): the rank by 2 n tokens is the rank by the pair of ranks by n tokens.
    """
    rank = tokens.astype(np.int64) - _END
    reach = 1
    while reach < depth:
        before = np.zeros_like(rank)
        before[reach:] = rank[:-reach]
        _, rank = np.unique(rank * (rank.max() + 1) + before, return_inverse=True)
        reach *= 2
    return np.argsort(rank, kind="stable").astype(np.int32)
