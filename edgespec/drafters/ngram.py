"""Prompt lookup (Saxena 2023): what followed these tokens the last time they stood in the context?

Every n-gram of the context points to its newest continuation, so a lookup is a dictionary access, and the index
grows by the tokens that were committed. The copy runs on into itself when it reaches the end of the context, as in
LZ77: after ``a b a b`` the draft is ``a b a b ...``, for as many tokens as asked. Where the context has nothing, a pool
of what earlier generations wrote may.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.backends.base import common_prefix
from edgespec.errors import SettingError
from edgespec.types import Draft, SamplingParams, Step, Verdict

_END = -1  # stands behind every text of a pool; no token


class NGram:
    """Longest n-gram first, newest match first; nothing found means no draft, never padding.

    pool: how many tokens of earlier generations to keep (about 450 bytes each, index included); 0 keeps none.

    >>> drafter = NGram()
    >>> drafter.begin([1, 2, 3, 4, 9, 2, 3], SamplingParams())
    >>> drafter.propose([1, 2, 3, 4, 9, 2, 3], 3).tokens
    (4, 9, 2)
    """

    name = "ngram"

    def __init__(self, longest: int = 4, shortest: int = 2, *, pool: int = 0) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self._pool = Pool(pool, self._lengths) if pool else None
        self._begun = 0  # length of the text when the generation began
        self._forget()

    def reset(self) -> None:
        self._forget()
        if self._pool is not None:
            self._pool.clear()

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        if self._pool is not None and len(self._text) > self._begun:
            # With the end of its prompt, so that its beginning can be found too.
            self._pool.add(self._text[max(0, self._begun - self._lengths[0]) :])
        if common_prefix(self._text, context) < len(self._text):
            self._forget()  # the index cannot forget a part
        self._extend(context)
        self._begun = len(context)

    def propose(self, context: Sequence[int], k: int) -> Draft:
        if k == 0:
            return Draft()
        for n in self._lengths:
            index = self._continuation.get(tuple(context[-n:])) if n <= len(context) else None
            if index is not None:
                period = len(context) - index
                return Draft(tuple(context[index + i % period] for i in range(k)))
        return Draft(self._pool.find(context, k)) if self._pool is not None else Draft()

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        self._extend(context)

    def _forget(self) -> None:
        self._text: list[int] = []
        self._begun = 0
        self._continuation: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token after it

    def _extend(self, context: Sequence[int]) -> None:
        """Index every n-gram that has a continuation; the last token's have none yet."""
        known = len(self._text)
        self._text.extend(context[known:])
        for index in range(max(known, 1), len(self._text)):
            for n in self._lengths:
                if n <= index:
                    self._continuation[tuple(self._text[index - n : index])] = index


class Pool:
    """The newest ``capacity`` tokens of finished texts, and the newest continuation of each n-gram in them.

    Token ``i`` of all that were ever added is at ``i % capacity`` of a ring and leaves it, with the n-grams that begin
    there, when token ``i + capacity`` comes. No n-gram and no draft reaches from one text into another.

    >>> pool = Pool(6, range(2, 0, -1))
    >>> pool.add([1, 2, 3])                                         # ring: 1 2 3 end . .
    >>> pool.add([7, 8])                                            # ring: 1 2 3 end 7 8, then end over 1
    >>> pool.find([1, 2], 5), pool.find([5, 7], 5), pool.find([3], 5)
    ((3,), (8,), ())
    """

    def __init__(self, capacity: int, lengths: range) -> None:
        if capacity < lengths[0] + 2:
            raise SettingError("tokens in the n-gram pool", got=capacity, allowed=f"0, or {lengths[0] + 2} and more")
        self._lengths = lengths
        self._ring = [_END] * capacity
        self.clear()

    def clear(self) -> None:
        self._added = 0
        self._continuation: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token after it
        self._ring[:] = [_END] * len(self._ring)

    def add(self, text: Sequence[int]) -> None:
        """A text has come to its end. The time is that of its length, whatever the pool holds."""
        for token in (*text[1 - len(self._ring) :], _END):
            self._drop(self._added - len(self._ring))
            self._ring[self._added % len(self._ring)] = token
            if token != _END:
                for n in self._lengths:  # one with an end in it is no n-gram of any context
                    self._continuation[self._tokens(self._added - n, n)] = self._added
            self._added += 1

    def find(self, context: Sequence[int], k: int) -> tuple[int, ...]:
        """Up to k tokens that followed the end of ``context``: of the longest n-gram, the newest."""
        for n in self._lengths:
            index = self._continuation.get(tuple(context[-n:]))
            if index is not None:
                found = self._tokens(index, k)
                return found[: found.index(_END)] if _END in found else found
        return ()

    def _drop(self, oldest: int) -> None:
        """Forget the n-grams that begin at the oldest token, unless a newer text has them too."""
        for n in self._lengths:
            gram = self._tokens(oldest, n)
            if self._continuation.get(gram) == oldest + n:
                del self._continuation[gram]

    def _tokens(self, begin: int, count: int) -> tuple[int, ...]:
        return tuple(self._ring[index % len(self._ring)] for index in range(begin, begin + count))
