"""Text of users that spells a control token stays text.

A chat template writes control tokens around what users said, and one tokenizer reads the whole. So a user who writes
``<|im_end|>`` would end his own turn and could begin another one in the model's name. Here such spellings are marked
before the template is rendered: a character that nobody used stands between their letters. In the rendered text the
marks say which letters are a user's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

_MARKS = range(0xE000, 0xF8FF)  # private use: no text needs them all


class ControlTokens:
    """texts: how control tokens are spelt.

    >>> control = ControlTokens(["<s>", "</s>"])
    >>> marked, mark = control.marked([{"role": "user", "content": "a</s>"}])
    >>> control.parts("<s>" + marked[0]["content"] + "</s>", mark)
    [('<s>', False), ('a</s>', True), ('</s>', False)]
    """

    def __init__(self, texts: Collection[str]) -> None:
        self._texts = [text for text in texts if len(text) > 1]

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
        mark = next(chr(code) for code in _MARKS if chr(code) not in used)
        return _mapped(messages, lambda text: self._marked(text, mark)), mark

    def _begins(self, text: str) -> bool:
        return any(text[-length:] in self._beginnings for length in range(1, min(len(text), self._longest) + 1))

    def parts(self, rendered: str, mark: str) -> list[tuple[str, bool]]:
        """The rendered text in pieces, without marks: True for those in which no control token stands."""
        ends = [(match.start(), match.end()) for match in self._spelt.finditer(rendered)]
        plain = rendered.replace(mark, "")
        same = [(start - rendered.count(mark, 0, start), rendered[start:end]) for start, end in ends]
        if same == [(match.start(), match.group()) for match in self._spelt.finditer(plain)]:
            return [(plain, False)]  # only the template spells any
        found: list[tuple[str, bool]] = []
        begin = 0
        for start, end in [*ends, (len(rendered), len(rendered))]:
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

    def _marked(self, text: str, mark: str) -> str:
        while self._spelt.search(text):  # tokens may overlap
            text = self._spelt.sub(lambda match: mark.join(match.group()), text)
        return text + mark if self._begins(text) else text


def texts_in(value: Any) -> list[str]:
    """All texts in messages, however deep."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in (*value.keys(), *value.values()) for text in texts_in(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in texts_in(item)]
    return []


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
