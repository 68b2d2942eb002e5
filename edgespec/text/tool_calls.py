"""Calls of tools in the text of an answer, and the format that makes a model write one.

Models write a call as JSON. Some put it between tags, ``<tool_call>`` and ``</tool_call>``. They may write text before
it, and several calls in a row. Others write nothing but the JSON of one call, or a list of calls. Their tags are
control tokens, which have no text. Some say ``arguments``, some ``parameters``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BEGIN, END = "<tool_call>", "</tool_call>"
_ARGUMENTS = ("arguments", "parameters")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """arguments: JSON of an object."""

    name: str
    arguments: str


def is_known_to(template: str) -> bool:
    """Whether a chat template shows tools to its model."""
    return "tools" in template


def forced(template: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """How an answer begins that is a call of one of these tools, and the response format of the rest."""
    is_tagged = BEGIN in template
    arguments = "arguments" if is_tagged or '"parameters"' not in template else "parameters"
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                arguments: tool["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", arguments],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return (f"{BEGIN}\n" if is_tagged else ""), {"type": "json_schema", "json_schema": {"schema": schema}}


def parse(text: str) -> list[ToolCall] | None:
    """The calls that a piece of JSON is; None if it is something else.

    >>> parse('{"name": "add", "arguments": {"a": 1}}')
    [ToolCall(name='add', arguments='{"a": 1}')]
    >>> parse("[1]"), parse("{")
    (None, None)
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    values = value if isinstance(value, list) else [value]
    calls = [_call(each) for each in values]
    found = [call for call in calls if call is not None]
    return found if found and len(found) == len(values) else None


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = next((value[key] for key in _ARGUMENTS if key in value), None)
    if isinstance(arguments, str):  # JSON within JSON
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


class CallScanner:
    """Finds calls in a text that comes in pieces. Holds back only what may belong to one.

    >>> scan = CallScanner()
    >>> scan.push("Sure. <tool"), scan.push('_call>{"name": "f", "arguments": {}}')
    (['Sure. '], [])
    >>> scan.push("</tool_call>")
    [ToolCall(name='f', arguments='{}')]
    """

    def __init__(self) -> None:
        self._held = ""
        self._is_inside = False
        self._began = False
        self._is_behind_call = False

    def push(self, text: str) -> list[str | ToolCall]:
        self._held += text
        if not self._began:
            if not (start := self._held.lstrip()):
                return []
            if start[0] in "{[":  # maybe all of it is a call: only the end tells
                return []
            self._began = True
        return self._scan()

    def flush(self) -> list[str | ToolCall]:
        """What was held back. A call without its end tag counts, if it is whole."""
        held, self._held = self._held, ""
        if not held:
            return []
        if (calls := parse(held)) is not None and (self._is_inside or not self._began):
            return list(calls)
        if not self._began:
            self._began, self._held = True, held
            return [*self._scan(), *self.flush()]
        return [BEGIN + held if self._is_inside else held]

    def _scan(self) -> list[str | ToolCall]:
        found: list[str | ToolCall] = []
        while True:
            tag = END if self._is_inside else BEGIN
            before, hit, after = self._held.partition(tag)
            if not hit:
                break
            self._held = after
            if self._is_inside:
                calls = parse(before)
                found += calls if calls is not None else [BEGIN + before + END]
                self._is_behind_call = calls is not None
            elif before.strip():
                found.append(before)
            self._is_inside = not self._is_inside
        if not self._is_inside:
            if self._is_behind_call:  # blanks between two calls are no text
                self._held = self._held.lstrip()
                self._is_behind_call = not self._held
            size = held_back(self._held, BEGIN)
            if shown := self._held[: len(self._held) - size]:
                found.append(shown)
            self._held = self._held[len(self._held) - size :]
        return found


def held_back(text: str, tag: str) -> int:
    """How many characters at the end of a text may begin a tag.

    >>> held_back("a <to", "<tool>"), held_back("a <b", "<tool>")
    (3, 0)
    """
    return next((size for size in range(min(len(text), len(tag) - 1), 0, -1) if tag.startswith(text[-size:])), 0)
