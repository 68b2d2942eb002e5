"""The last token of a prompt may be the beginning of a longer one. It is chosen again, together with what follows it.

After ``    `` a model never saw the token ``return``. A text with both has the tokens of three spaces and ``·return``,
with a space. So a prompt that ends within a line loses its last token, and the text has to begin with that token's
letters ("token healing", of Microsoft's guidance). This constraint sees to that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_LAST_LETTER = chr(0x10FFFF)


class Spellings:
    """The tokens of a vocabulary by their spelling: to find those that go with the beginning of a text.

    tokens: spelling -> id. left_out: ids that stand for no text. vocab_size: number of logits.

    >>> words = Spellings({"a": 0, "ab": 1, "abc": 2, "b": 3, "<s>": 4}, {4}, 5)
    >>> words.allowed("ab").tolist()
    [True, True, True, False, False]
    """

    def __init__(self, tokens: Mapping[str, int], left_out: Collection[int], vocab_size: int) -> None:
        usable = {text: token for text, token in tokens.items() if token not in left_out and token < vocab_size}
        self.of = {token: text for text, token in usable.items()}
        self._sorted = sorted(usable)
        self._ids = np.array([usable[text] for text in self._sorted])
        self._usable = usable
        self._vocab_size = vocab_size

    def allowed(self, text: str) -> NDArray[np.bool_]:
        """``(vocab,)`` The tokens that begin with ``text``, or that it begins with."""
        mask = np.zeros(self._vocab_size, np.bool_)
        if not text:
            return ~mask
        begin, end = bisect_left(self._sorted, text), bisect_left(self._sorted, text + _LAST_LETTER)
        mask[self._ids[begin:end]] = True
        shorter = [self._usable[text[:size]] for size in range(1, len(text)) if text[:size] in self._usable]
        mask[shorter] = True
        return mask


class BeginsWith:
    """A ``protocols.Constraint``: the text begins with these letters, as tokens spell them. After them, all goes."""

    def __init__(self, letters: str, spellings: Spellings) -> None:
        self._left = letters
        self._spellings = spellings
        self._masks: dict[str, NDArray[np.bool_]] = {}

    def allowed(self, ahead: Sequence[int]) -> NDArray[np.bool_]:
        left = self._after(ahead)
        if left not in self._masks:
            self._masks[left] = self._spellings.allowed(left)
        return self._masks[left]

    def commit(self, tokens: Sequence[int]) -> None:
        self._left = self._after(tokens)

    def _after(self, tokens: Sequence[int]) -> str:
        """The letters that are still missing behind some tokens."""
        left = self._left
        for token in tokens:
            if not left:
                break
            left = left[len(self._spellings.of[token]) :]
        return left
