"""Prompt lookup (Saxena 2023): copy what followed the last tokens of the context where they occurred before.

The index maps every n-gram of the context to its newest continuation. So a lookup is one dictionary access, and the
index grows with the committed tokens. A copy that reaches the end of the context goes on with its own tokens, as in
LZ77. After ``a b a b`` the draft is ``a b a b ...``, with as many tokens as asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.drafters.lookup import Lookup
from edgespec.protocols import common_prefix
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, Step, Verdict

_LONGEST_MATCH = 64


class NGram(Lookup):
    """Longest n-gram first, newest match first. Without a match there is no draft, and never padding.

    The score of a token says how long the match before it is: ``1 - 1 / (1 + tokens)``. Long matches rarely end at
    once.

    >>> drafter = NGram()
    >>> drafter.begin([1, 2, 3, 4, 9, 2, 3], SamplingParams())
    >>> drafter.propose([1, 2, 3, 4, 9, 2, 3], 3).tokens
    (4, 9, 2)
    """

    name = "ngram"

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self.reset()

    def reset(self) -> None:
        self._text: list[int] = []
        self._continuation: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token after it

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        self.begin_reading()
        context = self.reading(context)
        if common_prefix(self._text, context) < len(self._text):
            self.reset()  # the index cannot forget a part
        self._extend(context)

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        if k == 0:
            return Draft()
        context = self.reading(context)
        for n in self._lengths:
            index = self._continuation.get(tuple(context[-n:])) if n <= len(context) else None
            if index is not None:
                period = len(context) - index
                tokens = tuple(context[index + i % period] for i in range(k))
                match = self._match(context, index, n)
                return Draft(tokens, scores=tuple(1 - 1 / (1 + match + i) for i in range(k)))
        return Draft()

    def _match(self, context: Sequence[int], index: int, n: int) -> int:
        """Length of the match: how many tokens before ``index`` equal the last tokens of ``context``. At least n do."""
        while n < min(_LONGEST_MATCH, index) and context[index - 1 - n] == context[-1 - n]:
            n += 1
        return n

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        self._extend(self.reading(context))

    def _extend(self, context: Sequence[int]) -> None:
        """Index every n-gram that has a continuation. Those that end with the last token have none yet."""
        known = len(self._text)
        self._text.extend(context[known:])
        for index in range(max(known, 1), len(self._text)):
            for n in self._lengths:
                if n <= index:
                    self._continuation[tuple(self._text[index - n : index])] = index
