"""Chats as files: JSONL to read back in, one turn a line, and Markdown to read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from edgespec.errors import EdgespecError, SettingError, foreign
from edgespec.server.chat import fields
from edgespec.server.chat.store import Chat, Store, Turn

_MOST_TURNS = 200_000


class NotChats(EdgespecError):
    """The file is no export of chats."""


def jsonl(store: Store, chats: Iterable[Chat]) -> str:
    """A line for each chat, and behind it one for each of its turns. Ids hold within the file."""
    lines: list[str] = []
    for chat in chats:
        head = {"chat": chat.title, "pinned": chat.pinned, "system": chat.system, "options": chat.options}
        lines.append(json.dumps(head | {"leaf": chat.leaf}, ensure_ascii=False))
        for turn in store.turns(chat.id):
            line = {"id": turn.id, "parent": turn.parent, "role": turn.role, "content": turn.content}
            lines.append(json.dumps(line | {"files": list(turn.files), "facts": turn.facts}, ensure_ascii=False))
    return "".join(line + "\n" for line in lines)


def markdown(chat: Chat, branch: Iterable[Turn]) -> str:
    """The branch that is shown."""
    parts = [f"# {chat.title or 'Chat'}"]
    if chat.system:
        parts.append(f"> {chat.system}".replace("\n", "\n> "))
    for turn in branch:
        parts.append(f"## {'User' if turn.role == 'user' else 'Assistant'}")
        parts += [f"[{file['name']}]\n\n```\n{file['text']}\n```" for file in turn.files]
        parts.append(turn.content)
    return "\n\n".join(parts) + "\n"


def read_in(store: Store, text: str) -> int:
    """Add the chats of a JSONL file, all of them or none. Returns how many.

    Each line may also be one whole conversation with ``messages``, as many tools write them. Raises NotChats.
    """
    lines = [line for line in text.split("\n") if line.strip()]  # the texts themselves may hold other line ends
    if not lines or len(lines) > _MOST_TURNS:
        raise NotChats("no chats in this file", got=f"{len(lines)} lines", allowed=f"1 to {_MOST_TURNS} lines of JSON")
    count = 0
    with store.together(), foreign(NotChats, "this file holds no chats of edgespec or of messages"):
        chat: Chat | None = None
        known: dict[Any, int] = {}
        leaf: Any = None
        for number, line in enumerate(lines, 1):
            entry = msgspec.json.decode(line)  # unlike ``json`` it takes no half of a character, which nobody can send
            if not isinstance(entry, dict):
                raise ValueError(f"line {number} is no object")
            if "messages" in entry:
                _finish(store, chat, known, leaf)
                chat, count = None, count + 1
                _conversation(store, entry)
            elif "chat" in entry:
                _finish(store, chat, known, leaf)
                chat, known, leaf, count = (
                    store.create(_options(entry.get("options") or {}), _text(entry["chat"])),
                    {},
                    entry.get("leaf"),
                    count + 1,
                )
                store.change(chat.id, pinned=bool(entry.get("pinned")), system=_text(entry.get("system")))
            elif chat is None:
                raise ValueError(f"line {number} is a turn without a chat")
            else:
                parent = entry.get("parent")
                turn = store.add(
                    chat.id,
                    None if parent is None else known[parent],
                    _role(entry),
                    _text(entry["content"]),
                    [{"name": str(file["name"]), "text": _text(file["text"])} for file in entry.get("files") or []],
                )
                known[entry["id"]] = turn.id
                if entry.get("facts") is not None:
                    store.write(turn.id, turn.content, fields.facts_of(entry["facts"]))
        _finish(store, chat, known, leaf)
    return count


def _finish(store: Store, chat: Chat | None, known: dict[Any, int], leaf: Any) -> None:
    if chat is not None and leaf in known:
        store.change(chat.id, leaf=known[leaf])


def _conversation(store: Store, entry: dict[str, Any]) -> None:
    messages = [message for message in entry["messages"] if message.get("role") != "system"]
    system = "\n".join(_text(message["content"]) for message in entry["messages"] if message.get("role") == "system")
    first = next((_text(message["content"]) for message in messages), "")
    chat = store.create({}, _text(entry.get("title")) or title_of(first))
    store.change(chat.id, system=system)
    parent: int | None = None
    for message in messages:
        turn = store.add(chat.id, parent, _role(message), _text(message["content"]))
        if turn.role == "assistant":
            store.write(turn.id, turn.content, {"finish": "stop"})
        parent = turn.id


def _options(found: dict[str, Any]) -> dict[str, Any]:
    try:
        return fields.kept(fields.options_of(found))
    except SettingError as error:
        raise ValueError(str(error)) from error


def _text(value: object) -> str:
    """Of a message: a text, parts of one as OpenAI's tools write them, or nothing beside calls of tools."""
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in value if isinstance(part, dict))
    if value is not None and not isinstance(value, str):
        raise ValueError(f"a text was expected, and {type(value).__name__} is there")
    return value or ""


def _role(entry: dict[str, Any]) -> str:
    if entry["role"] not in ("user", "assistant"):
        raise ValueError(f"role {entry['role']!r}")
    return str(entry["role"])


def title_of(question: str) -> str:
    """
    >>> title_of("What is the capital\\nof France, and why?")
    'What is the capital'
    """
    line = next((line.strip() for line in question.splitlines() if line.strip()), "")
    return line if len(line) <= 48 else line[:48].rsplit(" ", 1)[0] + "…"
