"""The parts of a chat's answer: content, reasoning, and calls of tools."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from edgespec.server.prepare import Prepared
from edgespec.text.reasoning import ReasoningScanner
from edgespec.text.tool_calls import CallScanner, ToolCall


@dataclass
class Parts:
    """Of a piece of an answer, or of all of it. calls: each with an id."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, ToolCall]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


class PartScanner:
    """Sorts the text of one answer."""

    def __init__(self, prepared: Prepared) -> None:
        self._reasoning = ReasoningScanner(inside=prepared.is_reasoning)
        self._calls = CallScanner() if prepared.has_tools else None

    def push(self, text: str) -> Parts:
        return self._sorted(*self._reasoning.push(text))

    def flush(self) -> Parts:
        parts = self._sorted(*self._reasoning.flush())
        return self._with_calls(parts, self._calls.flush()) if self._calls else parts

    def whole(self, text: str) -> Parts:
        first, last = self.push(text), self.flush()
        return Parts(first.content + last.content, first.reasoning + last.reasoning, first.calls + last.calls)

    def _sorted(self, reasoning: str, answer: str) -> Parts:
        parts = Parts(reasoning=reasoning)
        if self._calls is None:
            parts.content = answer
            return parts
        return self._with_calls(parts, self._calls.push(answer)) if answer else parts

    def _with_calls(self, parts: Parts, found: list[str | ToolCall]) -> Parts:
        for each in found:
            if isinstance(each, ToolCall):
                parts.calls.append((f"call_{secrets.token_hex(8)}", each))
            else:
                parts.content += each
        return parts
