"""Text of users that spells a control token stays text.

A chat template writes control tokens around what users said, and one tokenizer reads the whole. So a user who writes
``<|im_end|>`` would end his own turn and could begin another one in the model's name. Here such spellings are marked
before the template is rendered: a character that nobody used stands between their letters. In the rendered text the
marks say which letters are a user's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from edgespec.errors import SettingError

_MARKS = (*range(0xE000, 0xF8FF), *range(0xF0000, 0xFFFFD))  # private use
_WORDS_OF_CODE = ("role", "type")
"""keys whose values templates compare with words"""


class ControlTokens:
    """texts: how control tokens are spelt. eats: of those that take blanks into themselves, whether on the left and
    whether on the right.

    >>> control = ControlTokens(["<s>", "</s>"])
    >>> marked, mark = control.marked([{"role": "user", "content": "a</s>"}])
    >>> control.parts("<s>" + marked[0]["content"] + "</s>", mark)
    [('<s>', False), ('a</s>', True), ('</s>', False)]
    """

    def __init__(self, texts: Collection[str], eats: Mapping[str, tuple[bool, bool]] | None = None) -> None:
        self._texts = [text for text in texts if len(text) > 1]
        self._eats = eats or {}

    @cached_property
    def _spelt(self) -> re.Pattern[str]:
        longest_first = sorted(self._texts, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        """Of a control token: a text behind may spell the rest, where a template writes parts of a message in a row."""
        return frozenset(text[:end] for text in self._texts for end in range(1, len(text)))

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._beginnings), default=0)

    def marked(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], str]:
        """The messages with marks in what spells a control token, or begins to; and the mark, "" where nothing does."""
        texts = texts_in(messages)
        if not any(self._spelt.search(text) or self._begins(text) for text in texts):
            return messages, ""
        used = set().union(*texts)
        escaped = "\\u" in "".join(texts)
        marks = (chr(code) for code in _MARKS if chr(code) not in used)
        mark = next((mark for mark in marks if not (escaped and any(_escaped(mark) in text for text in texts))), None)
        if mark is None:
            raise SettingError("messages use every private character of Unicode", hint="leave some of them out")
        return _mapped(messages, lambda text: self._marked(text, mark)), mark

    def _begins(self, text: str) -> bool:
        return any(text[-length:] in self._beginnings for length in range(1, min(len(text), self._longest) + 1))

    def parts(self, rendered: str, mark: str) -> list[tuple[str, bool]]:
        """The rendered text in pieces, without marks: True for those in which no control token stands."""
        rendered = rendered.replace(_escaped(mark), mark)  # by tojson
        ends = [self._with_blanks(rendered, match) for match in self._spelt.finditer(rendered)]
        plain = rendered.replace(mark, "")
        spelt = [(match.start(), match.group()) for match in self._spelt.finditer(rendered)]
        same = [(start - rendered.count(mark, 0, start), text) for start, text in spelt]
        if same == [(match.start(), match.group()) for match in self._spelt.finditer(plain)]:
            return [(plain, False)]  # only the template spells any
        found: list[tuple[str, bool]] = []
        begin = 0
        for start, end in [*ends, (len(rendered), len(rendered))]:
            start = max(begin, start)
            between = rendered[begin:start]
            found += [(between.replace(mark, ""), mark in between), (rendered[start:end], False)]
            begin = end
        joined: list[tuple[str, bool]] = []
        for text, is_text in found:
            if joined and not is_text and not joined[-1][1]:
                joined[-1] = (joined[-1][0] + text, False)
            elif text:
                joined.append((text, is_text))
        return joined

    def _with_blanks(self, text: str, match: re.Match[str]) -> tuple[int, int]:
        """Where a control token begins and ends, with the blanks that become part of it."""
        left, right = self._eats.get(match.group(), (False, False))
        start, end = match.span()
        while left and start and text[start - 1].isspace():
            start -= 1
        while right and end < len(text) and text[end].isspace():
            end += 1
        return start, end

    def _marked(self, text: str, mark: str) -> str:
        while self._spelt.search(text):  # tokens may overlap
            text = self._spelt.sub(lambda match: mark.join(match.group()), text)
        return text + mark if self._begins(text) else text


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()


def texts_in(value: Any) -> list[str]:
    """All texts in messages, however deep."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in (*value.keys(), *value.values()) for text in texts_in(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in texts_in(item)]
    return []


def _escaped(mark: str) -> str:
    return json.dumps(mark)[1:-1]


def _mapped(value: Any, change: Any) -> Any:
    """Keys are names, and so are roles and types: a template looks for them."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            key if _is_word(key) else _mapped(key, change): item
            if key in _WORDS_OF_CODE and _is_word(item)
            else _mapped(item, change)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
