"""Where the text of a hole ends, besides the stop strings: where it meets the text behind the hole, and by its lines.

A model that never saw the text behind the hole goes on and writes it, too. So its text is cut where it arrives there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgespec.text.tokenizer import StopStrings

FENCE = "```"
_LINE_ENDS = re.compile(r"(\n)")


@dataclass(frozen=True, slots=True)
class LineRules:
    """rest: what stands behind the hole on its line. If there is something, the text of the hole has one line, and a
        repetition of the rest is cut off its end.
    next_line: the first line behind the hole that is not empty. The text ends before a line equal to it.
    indent: the text ends before a line that is indented by fewer characters, an empty line included. 0: no such rule.
    seconds: the text ends once it has lasted for so long, but not before its first line break. None: no such rule.
    fence: without the fences of Markdown that a model may put around code. A line that opens one is left out, and the
        text ends before one that closes it.
    """

    rest: str = ""
    next_line: str = ""
    indent: int = 0
    seconds: float | None = None
    fence: bool = False

    @classmethod
    def meeting(cls, suffix: str, **others: Any) -> LineRules:
        """The rules for a text that has to meet ``suffix``.

        >>> LineRules.meeting(")\\nnext")
        LineRules(rest=')', next_line='', indent=0, seconds=None, fence=False)
        >>> LineRules.meeting("\\n\\n  next\\n").next_line
        '  next'
        """
        rest, _, below = suffix.partition("\n")
        if rest.strip():
            return cls(rest=rest.rstrip(), **others)
        line = next((line for line in below.split("\n") if line.strip()), "")
        return cls(next_line=line.rstrip(), **others)


class HoleEnd(StopStrings):
    """Stop strings and line rules together. Holds back only text that the rules may cut.

    >>> scan = HoleEnd([], {}, LineRules(next_line="b = 2"), lambda: 0.0)
    >>> scan.push("a = 1"), scan.push("\\n"), scan.push("b = 3\\nb ="), scan.push(" 2"), scan.push("\\n")
    ('a = 1', '', '\\nb = 3', '', '')
    >>> scan.found
    'b = 2'
    """

    def __init__(
        self,
        stops: Sequence[str],
        tokens: Mapping[int, str],
        rules: LineRules,
        clock: Callable[[], float],
        *,
        skip: int = 0,
    ) -> None:
        """skip: characters at the beginning that are part of the prompt, and not of the text."""
        super().__init__(stops, tokens)
        self._rules, self._clock, self._skip = rules, clock, skip
        self._began: float | None = None
        self._line = ""
        self._first = True
        self._wrote = False  # a line that is not blank
        self._unsaid = ""
        self._over = False  # by a rule: nothing that is held back belongs to the text

    def push(self, text: str) -> str:
        if self.found is not None:
            return ""
        skipped, text = text[: self._skip], text[self._skip :]
        self._skip -= len(skipped)
        said = self._lines(super().push(text))
        seconds = self._rules.seconds
        if self._began is None:
            self._began = self._clock()
        elif seconds is not None and not self._first and self.found is None and self._clock() - self._began > seconds:
            self.found = "\n"
        return said

    def flush(self) -> str:
        said = ""
        if not self._over:
            said = self._lines(super().flush())
            self._end_line()
        said, self._unsaid = said + self._unsaid, ""
        return said

    def _lines(self, text: str) -> str:
        said = ""
        for part in _LINE_ENDS.split(text):
            if part == "\n":
                if self._opens_fence():
                    self._unsaid = self._unsaid[: -len(self._line)]
                    self._line = ""
                    continue
                if self._end_line():
                    self._end(self._line.rstrip() or part)
                    said, self._unsaid = said + self._unsaid, ""
                    return said
                self._wrote = self._wrote or bool(self._line.strip())
                self._line, self._first = "", False
            self._line += part.removesuffix("\n")
            self._unsaid += part
            if self._is_too_shallow() or (self._wrote and self._is_fence()):
                self._unsaid = ""
                self._end(self._line)
                return said
            if not self._may_be_cut():
                said, self._unsaid = said + self._unsaid, ""
        return said

    def _end(self, found: str) -> None:
        self._over = True
        self.found = found if self.found is None else self.found

    def _end_line(self) -> bool:
        """The line is complete: cut off what a rule forbids. Whether the text ends here."""
        rules, line = self._rules, self._line.rstrip()
        if self._is_fence():
            self._unsaid = ""
            return True
        if rules.rest and self._first:
            if line.endswith(rules.rest):
                self._unsaid = self._unsaid.rstrip().removesuffix(rules.rest)
            return True
        if not self._first and ((rules.next_line and line == rules.next_line) or (rules.indent and not line)):
            self._unsaid = ""
            return True
        return False

    def _is_too_shallow(self) -> bool:
        inner = self._line.lstrip(" \t")
        return not self._first and bool(inner) and len(self._line) - len(inner) < self._rules.indent

    def _is_fence(self) -> bool:
        return self._rules.fence and self._line.lstrip().startswith(FENCE)

    def _opens_fence(self) -> bool:
        """Whether the line is a fence that names a language. Behind other text it ends the text before it is whole."""
        return self._is_fence() and self._line.strip() != FENCE

    def _may_be_cut(self) -> bool:
        """Whether a rule may yet take back what was not said: the line so far, and the line breaks before it."""
        rules, line = self._rules, self._line.rstrip()
        if rules.fence and (FENCE.startswith(line.lstrip()) or self._is_fence()):
            return True
        if self._first:
            return bool(rules.rest)
        if not line:
            return bool(rules.next_line or rules.indent)
        return bool(rules.next_line) and rules.next_line.startswith(line)
