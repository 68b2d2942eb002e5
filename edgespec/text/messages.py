"""Messages of a conversation as callers write them, made as chat templates read them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from edgespec.errors import SettingError, shown

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""that OpenAI's API knows. A template may name others, such as ``ipython``."""
_AS_SYSTEM = ("developer",)
"""roles that OpenAI has added since; templates know them as ``system``"""
_WORD = re.compile(r"[\w-]+")
_DEEPEST = 64
"""levels of lists and objects. Arguments of calls and schemas of tools have a dozen."""
_FORM = 'a list of {"role": "user", "content": "..."}'


def plain_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Content as one text, arguments of calls as objects. Raises SettingError for what no text model reads.

    What it gives stays as it is if it is given again.

    >>> plain_messages([{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}])
    [{'role': 'system', 'content': 'Be brief.'}]
    """
    if isinstance(messages, Mapping):
        raise SettingError("messages", got="one message", allowed=_FORM, hint="put it into a list", setting="messages")
    if isinstance(messages, str | bytes | bytearray) or not isinstance(messages, Iterable):
        hint = "use generate for a prompt that is a text" if isinstance(messages, str) else None
        got = shown(messages) if isinstance(messages, str) else type(messages).__name__
        raise SettingError("messages", got=got, allowed=_FORM, hint=hint, setting="messages")
    found = [_plain(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if not found:
        raise _wrong("messages is empty")
    return found


def require_shallow(value: Any, setting: str) -> None:
    """Raises SettingError for lists in lists without end: what reads them goes as deep, and Python does not.

    >>> require_shallow([{"content": ["a"]}], "messages")
    """
    level = [value] if _is_nesting(value) else []
    for _ in range(_DEEPEST):
        inner = (each.values() if isinstance(each, Mapping) else each for each in level)
        level = list({id(item): item for each in inner for item in each if _is_nesting(item)}.values())
        if not level:
            return
    got, allowed = f"deeper than {_DEEPEST} levels", f"{_DEEPEST} levels of lists and objects"
    raise SettingError(setting, got=got, allowed=allowed, setting=setting)


def _is_nesting(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def require_roles(messages: Iterable[Mapping[str, Any]], template: str) -> None:
    """Raises SettingError for a role that neither the API nor this template knows: a model answers it with nonsense."""
    for index, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str) or role in ROLES:
            continue
        if _WORD.fullmatch(role) and any(f"{quote}{role}{quote}" in template for quote in "'\""):
            continue
        near = get_close_matches(role.lower(), ROLES, 1)
        hint = f'did you mean "{near[0]}"' if near else None
        raise _wrong(f"messages[{index}]: role", got=role, allowed=", ".join(ROLES), hint=hint)


def _plain(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise _wrong(where, got=type(message).__name__, allowed='{"role": "user", "content": "..."}')
    role = message.get("role")
    if not isinstance(role, str):
        raise _wrong(f"{where}: it has no role", allowed=", ".join(ROLES))
    if message.get("images"):
        raise _wrong(f"{where}: images are not supported", allowed="text")
    found = {**message, "role": "system" if role in _AS_SYSTEM else role, "content": _text(message, where)}
    if calls := message.get("tool_calls"):
        found["tool_calls"] = [_call(call, where) for call in _list(calls, f"{where}.tool_calls")]
    return found


def _text(message: Mapping[str, Any], where: str) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in _list(content, f"{where}.content"):
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "refusal"):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise _wrong(f"{where}: content of type {kind!r} is not supported", allowed="text")
        text = part.get(part["type"])
        if not isinstance(text, str):
            raise _wrong(f"{where}: a part of type text has no text")
        texts.append(text)
    return "".join(texts)


def _call(call: Any, where: str) -> dict[str, Any]:
    """A call as OpenAI writes it. transformers knows it without ``function`` too."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _wrong(f"{where}: a tool call names no function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments or "{}")
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise _wrong(f"{where}: arguments of a tool call are not JSON") from error
    own = {} if function is call else call
    return {**own, "type": "function", "function": {**function, "arguments": arguments or {}}}


def _list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise _wrong(where, got=type(value).__name__, allowed="a text or a list")
    return value


def _wrong(what: str, **more: Any) -> SettingError:
    return SettingError(what, setting="messages", **more)
