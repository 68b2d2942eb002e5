"""Messages as clients send them, made as chat templates read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from edgespec.server.fields import described
from edgespec.server.refusals import BadRequest

Message = Annotated[
    dict[str, Any],
    described(
        properties={"role": {"type": "string"}, "content": {"type": ["string", "array", "null"]}}, required=["role"]
    ),
]
"""as a client sends it; ``plain_messages`` says more"""
_AS_SYSTEM = ("developer",)
"""roles that OpenAI has added since; templates know them as ``system``"""


_OWN_VARIABLES = {"add_generation_prompt", "allow_special", "begun", "messages", "self", "tools"}


def template_variables(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Variables of a chat template that a client may set. Raises BadRequest."""
    if taken := sorted(_OWN_VARIABLES & (given or {}).keys()):
        raise BadRequest(f"chat_template_kwargs: {taken[0]} is set by the server", param="chat_template_kwargs")
    return dict(given or {})


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Content as one text, arguments of calls as objects. Raises BadRequest for what no text model reads."""
    if not messages:
        raise BadRequest("messages is empty", param="messages")
    return [_plain(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _plain(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str):
        raise BadRequest(f"{where}: it has no role", param="messages")
    if message.get("images"):
        raise BadRequest(f"{where}: images are not supported; allowed: text", param="messages")
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
            raise BadRequest(f"{where}: content of type {kind!r} is not supported; allowed: text", param="messages")
        text = part.get(part["type"])
        if not isinstance(text, str):
            raise BadRequest(f"{where}: a part of type text has no text", param="messages")
        texts.append(text)
    return "".join(texts)


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRequest(f"{where}: a tool call names no function", param="messages")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments or "{}")
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadRequest(f"{where}: arguments of a tool call are not JSON", param="messages") from error
    return {**call, "type": "function", "function": {**function, "arguments": arguments or {}}}


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRequest(f"{where}: got {type(value).__name__}; allowed: a text or a list", param="messages")
    return value
