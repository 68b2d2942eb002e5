"""Text of users that spells a control token stays text.

A chat template writes control tokens around what users said, and one tokenizer reads the whole. So a user who writes
``<|im_end|>`` would end his own turn and could begin another one in the model's name. Here such spellings are marked
before the template is rendered: a character that nobody used stands between their letters. In the rendered text the
marks say which letters are a user's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
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
        longest_first = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def marked(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], str]:
        """The messages with marks in what spells a control token, and the mark; "" where nothing does."""
        if self._spelt is None or not any(self._spelt.search(text) for text in texts_in(messages)):
            return messages, ""
        used = set().union(*texts_in(messages))
        mark = next(chr(code) for code in _MARKS if chr(code) not in used)
        return _mapped(messages, lambda text: self._marked(text, mark)), mark

    def parts(self, rendered: str, mark: str) -> list[tuple[str, bool]]:
        """The rendered text in pieces, without marks: True for those in which no control token stands."""
        assert self._spelt is not None
        found: list[tuple[str, bool]] = []
        begin = 0
        ends = [(match.start(), match.end()) for match in self._spelt.finditer(rendered)]
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
        assert self._spelt is not None
        while self._spelt.search(text):  # tokens may overlap
            text = self._spelt.sub(lambda match: mark.join(match.group()), text)
        return text


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
