"""Prompt lookup (Saxena 2023) in what earlier generations of this process wrote.

Answers to one user resemble each other: a corrected program is mostly the earlier program. The pool is a ring with the
newest tokens of finished texts. For every n-gram in it, an index has the newest continuation. Prompts are not added.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.drafters.lookup import Lookup
from edgespec.errors import SettingError
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, Step, Verdict

_END = -1  # follows every text; not a token
_LONGEST_MATCH = 64


class Pool(Lookup):
    """Longest n-gram first, newest match first. Without a match there is no draft, and never padding.

    capacity: tokens to keep, about 240 bytes each, index included. New tokens replace the oldest. Token ``i``, counted
        over all tokens ever added, is at ``i % capacity`` of the ring. It leaves the ring, with the n-grams that begin
        there, when token ``i + capacity`` comes. No n-gram and no draft reaches from one text into another.
    longest, shortest: tokens that have to match. Fewer than four give many false matches between texts.
    The score of a token says how long the match before it is, ``1 - 1 / (1 + tokens)``.

    >>> pool = Pool(8, longest=2, shortest=2)
    >>> pool.add([1, 2, 3])                                         # ring: 1 2 3 end . . . .
    >>> pool.add([6, 7, 8, 9])                                      # ring: 1 2 3 end 6 7 8 9, then end over 1
    >>> pool.propose([2, 3], 5).tokens, pool.propose([0, 6, 7], 5).tokens, pool.propose([3, 6], 5).tokens
    ((), (8, 9), ())
    """

    name = "pool"
    uses_history = True

    def __init__(self, capacity: int = 16_384, *, longest: int = 4, shortest: int = 4) -> None:
        if capacity < longest + 2:
            raise SettingError("tokens in the pool", got=capacity, allowed=f"{longest + 2} or more")
        self._lengths = range(longest, shortest - 1, -1)
        self._ring = [_END] * capacity
        self.reset()

    def reset(self) -> None:
        self._added = 0
        self._continuation: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token after it
        self._ring[:] = [_END] * len(self._ring)
        self._prompt_end: list[int] = []
        self._written: list[int] = []

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        """The text before this one is finished, so it is added."""
        if self._written:
            self.add([*self._prompt_end, *self._written])
        self.begin_reading()
        self._prompt_end = list(
            self.reading(context)[-self._lengths[0] :]
        )  # so that the beginning of an answer is found too
        self._written = []

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        if k == 0:
            return Draft()
        context = self.reading(context)
        for n in self._lengths:
            index = self._continuation.get(tuple(context[-n:])) if n <= len(context) else None
            if index is not None:
                found = self._tokens(index, k)
                tokens = found[: found.index(_END)] if _END in found else found
                match = self._match(context, index, n)
                return Draft(tokens, scores=tuple(1 - 1 / (1 + match + i) for i in range(len(tokens))))
        return Draft()

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        self._written.extend(verdict.tokens)

    def add(self, text: Sequence[int]) -> None:
        """Add a finished text. The time depends on its length only, not on what the pool holds."""
        for token in (*text[1 - len(self._ring) :], _END):
            self._drop(self._added - len(self._ring))
            self._ring[self._added % len(self._ring)] = token
            if token != _END:
                for n in self._lengths:  # no context has an n-gram with an end in it
                    self._continuation[self._tokens(self._added - n, n)] = self._added
            self._added += 1

    def _drop(self, oldest: int) -> None:
        """Forget the n-grams that begin at the oldest token, unless a newer text has them too."""
        for n in self._lengths:
            gram = self._tokens(oldest, n)
            if self._continuation.get(gram) == oldest + n:
                del self._continuation[gram]

    def _match(self, context: Sequence[int], index: int, n: int) -> int:
        """Length of the match: how many tokens before ``index`` equal the last tokens of ``context``. At least n do."""
        oldest = max(0, self._added - len(self._ring))
        longest = min(_LONGEST_MATCH, index - oldest, len(context))
        while n < longest and self._ring[(index - 1 - n) % len(self._ring)] == context[-1 - n]:
            n += 1
        return n

    def _tokens(self, begin: int, count: int) -> tuple[int, ...]:
        return tuple(self._ring[index % len(self._ring)] for index in range(begin, begin + count))
