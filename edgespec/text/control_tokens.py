"""A user's text that spells a control token stays text.

A chat template writes control tokens around the users' messages, and one tokenizer reads the result. So a user who
writes ``<|im_end|>`` would end his own message, and could begin another one in the model's name. To prevent this, such
spellings are marked before the template is rendered. The mark is a character that no message contains, put between the
letters. In the rendered text the marks show which spellings are a user's. The text is cut there.
"""

from __future__ import annotations

import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

_MARKS = (range(0xE000, 0xF8FF), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE), range(0x10000, 0xF0000))
"""code points. Private use comes first. A text that used all of them would be longer than any context."""
_ESCAPES = re.compile(r"(?=(\\u[0-9a-f]{4}(?:\\ud[c-f][0-9a-f]{2})?|\\U[0-9a-f]{8}))")
_OWN_ROLES = ("assistant", "model")
_COMPARED = ("role", "type")
"""keys whose values a template compares"""


class ControlTokens:
    """texts: the spellings of control tokens. spoken: those that a model writes in its answers, where they stay tokens.

    >>> control = ControlTokens(["<s>", "</s>"])
    >>> marked, mark = control.marked([{"role": "user", "content": "a</s>"}])
    >>> control.parts("<s>" + marked[0]["content"] + "</s>", mark)
    ['<s>a<', '/s></s>']
    """

    def __init__(self, texts: Collection[str], spoken: Collection[str] = ()) -> None:
        self._texts = [text for text in texts if len(text) > 1]
        self._of_users = _Spellings(self._texts)
        self._of_model = _Spellings([text for text in self._texts if text not in spoken]) if spoken else self._of_users

    @cached_property
    def _spelt(self) -> re.Pattern[str]:
        """Matches at every place where a spelling begins, also inside another one. The longest one there counts."""
        return re.compile(f"(?=({_any_of(self._texts)}))")

    def marked(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], str]:
        """The messages with marks in each spelling of a control token, or the beginning of one. Also the mark, "" if
        none is needed.

        A spelling in capitals or in letters of another width counts too: the template or the tokenizer may change them.
        """
        if not isinstance(messages, Sequence):
            return messages, ""
        found = False

        def look(text: str, spellings: _Spellings) -> str:
            nonlocal found
            found = found or spellings.are_in(text)
            return text

        for message in messages:
            self._changed(message, look)
        if not found:
            return messages, ""
        mark = _unused(texts_in(messages))
        return [
            self._changed(message, lambda text, spellings: spellings.marked(text, mark)) for message in messages
        ], mark

    def _changed(self, message: Any, change: Callable[[str, _Spellings], str]) -> Any:
        is_models = isinstance(message, Mapping) and message.get("role") in _OWN_ROLES
        spellings = self._of_model if is_models else self._of_users
        return _changed(message, lambda text: change(text, spellings))

    def parts(self, rendered: str, mark: str) -> list[str]:
        """The rendered text without marks, cut inside each control token that a user spelt."""
        if not mark:
            return [rendered]
        for escape in _escapes(mark):
            rendered = rendered.replace(escape, mark)
        marks = [match.start() - count for count, match in enumerate(re.finditer(mark, rendered))]
        plain = rendered.replace(mark, "")
        cuts = {0, len(plain)}
        for match in self._spelt.finditer(plain):
            following = bisect_right(marks, match.start(1))
            if following < len(marks) and marks[following] < match.end(1):
                cuts.add(marks[following])
        places = sorted(cuts)
        return [plain[start:end] for start, end in pairwise(places)]


class _Spellings:
    """The spellings of control tokens, in letters of any case and width."""

    def __init__(self, texts: Collection[str]) -> None:
        self._texts = sorted({_folded(text) for text in texts})

    @cached_property
    def _spelt(self) -> re.Pattern[str]:
        return re.compile(_any_of(self._texts))

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        """Beginnings of control tokens. A template may write parts of a message in a row, so a later text may spell the
        rest."""
        return frozenset(text[:end] for text in self._texts for end in range(1, len(text)))

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._beginnings), default=0)

    def are_in(self, text: str) -> bool:
        folded = _folded(text)
        if self._spelt.search(folded) or self._begins(folded.rstrip()) or self._begins(folded):
            return True
        return not text.isascii() and bool(self._spelt.search(unicodedata.normalize("NFKC", text).lower()))

    def _begins(self, folded: str) -> bool:
        return any(folded[-length:] in self._beginnings for length in range(1, min(len(folded), self._longest) + 1))

    def marked(self, text: str, mark: str) -> str:
        while places := [match.span() for match in self._spelt.finditer(_folded(text))]:  # spellings may overlap
            pieces = [""]
            begin = 0
            for start, end in places:
                pieces += [text[begin:start], mark.join(text[start:end])]
                begin = end
            text = "".join((*pieces, text[begin:]))
        stripped = text.rstrip()
        if self._begins(_folded(text)):
            text += mark
        if stripped != text and self._begins(_folded(stripped)):  # a template may strip it too
            text = stripped + mark + text[len(stripped) :]
        return text


class _Letters(dict[int, str]):
    """Maps a letter to its lower case and usual width, if the result is one letter."""

    def __missing__(self, code: int) -> str:
        letter = unicodedata.normalize("NFKC", chr(code)).lower()
        self[code] = letter if len(letter) == 1 else chr(code)
        return self[code]


_LETTERS = _Letters()


def _folded(text: str) -> str:
    """The text with its letters mapped. Its length stays the same."""
    return text.lower() if text.isascii() else text.translate(_LETTERS)


def _any_of(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def _escapes(mark: str) -> set[str]:
    """How JSON and Python's repr write the mark."""
    return {json.dumps(mark)[1:-1], ascii(mark)[1:-1]}


def _unused(texts: Collection[str]) -> str:
    """A character that is not in the texts, neither itself nor as an escape."""
    used: set[str] = set().union(*texts)
    escapes = {escape for text in texts if "\\" in text for escape in _ESCAPES.findall(text)}
    return next(
        mark for mark in map(chr, chain(*_MARKS)) if mark not in used and not (escapes and escapes & _escapes(mark))
    )


def texts_in(value: Any) -> list[str]:
    """All texts in messages, at any depth."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in (*value.keys(), *value.values()) for text in texts_in(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in texts_in(item)]
    return []


def _changed(value: Any, change: Callable[[str], str], *, is_data: bool = False) -> Any:
    """A copy with changed texts. Keys and values that a template compares stay. is_data: a template compares nothing in
    it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            change(key) if is_data and isinstance(key, str) else key: item
            if key in _COMPARED and not is_data
            else _changed(item, change, is_data=is_data or key == "arguments")
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_changed(item, change, is_data=is_data) for item in value]
    return value
