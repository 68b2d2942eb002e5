"""The user's chats, in one SQLite file.

A chat is a tree of turns: an edited question or another answer is a further child of the same turn, so nothing that
was written is lost. ``leaf`` names the turn at the end of the branch that is shown. Deleting hides a chat, until it is
restored or the time of grace is over.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from edgespec.errors import EdgespecError
from edgespec.own_files import make_private, private_opener

_MOST_ID = 2**63  # of SQLite
GRACE_S = 30 * 24 * 3600.0
"""after which a deleted chat is gone"""
_MOST_FOUND = 50
_LONGEST_SEARCH = 500
"""characters"""
_MIGRATIONS = (
    """
    CREATE TABLE chats (
        id TEXT PRIMARY KEY, title TEXT NOT NULL, pinned INTEGER NOT NULL DEFAULT 0, system TEXT NOT NULL DEFAULT '',
        options TEXT NOT NULL DEFAULT '{}', leaf INTEGER, created REAL NOT NULL, updated REAL NOT NULL, deleted REAL
    );
    CREATE TABLE turns (
        id INTEGER PRIMARY KEY, chat TEXT NOT NULL REFERENCES chats ON DELETE CASCADE, parent INTEGER,
        role TEXT NOT NULL, content TEXT NOT NULL, files TEXT NOT NULL DEFAULT '[]', facts TEXT, created REAL NOT NULL
    );
    CREATE INDEX turns_of_chat ON turns (chat);
    CREATE VIRTUAL TABLE found USING fts5 (content, content=turns, content_rowid=id);
    CREATE TRIGGER turns_in AFTER INSERT ON turns BEGIN
        INSERT INTO found (rowid, content) VALUES (new.id, new.content);
    END;
    CREATE TRIGGER turns_out AFTER DELETE ON turns BEGIN
        INSERT INTO found (found, rowid, content) VALUES ('delete', old.id, old.content);
    END;
    CREATE TRIGGER turns_new AFTER UPDATE OF content ON turns BEGIN
        INSERT INTO found (found, rowid, content) VALUES ('delete', old.id, old.content);
        INSERT INTO found (rowid, content) VALUES (new.id, new.content);
    END;
    """,
)
"""Each takes the file to the next version; one that was published never changes."""
_SHOWN_AGAIN = """
    BEGIN;
    INSERT INTO chats (id, title, leaf, created, updated)
    SELECT lost.chat, replace(substr(content, 1, 48), char(10), ' '), leaf, lost.created, updated FROM turns JOIN (
        SELECT chat, min(id) AS head, max(id) AS leaf, min(created) AS created, max(created) AS updated
        FROM turns WHERE chat NOT IN (SELECT id FROM chats) GROUP BY chat
    ) AS lost ON id = head;
    UPDATE chats SET leaf = (SELECT max(id) FROM turns WHERE turns.chat = chats.id)
    WHERE leaf NOT IN (SELECT id FROM turns);
    UPDATE turns SET parent = NULL WHERE role = 'user' AND parent NOT IN (SELECT id FROM turns) AND NOT EXISTS (
        SELECT 1 FROM turns AS earlier
        WHERE earlier.chat = turns.chat AND earlier.role = 'user' AND earlier.id < turns.parent
    );
    INSERT INTO turns (id, chat, parent, role, content, created)
    SELECT parent, chat, (
            SELECT max(id) FROM turns AS earlier
            WHERE earlier.chat = behind.chat AND earlier.role = behind.role AND id < behind.parent
        ), CASE role WHEN 'user' THEN 'assistant' ELSE 'user' END, '(This turn was lost.)', min(created)
    FROM turns AS behind WHERE parent < id AND parent NOT IN (SELECT id FROM turns) GROUP BY parent;
    COMMIT;
"""
"""Turns that were saved without their chat, without its leaf, or without the turn before them. A lost turn is replaced:
what stood behind it stays one answer to it or several, and no answer to another question. Roles alternate from a user's
first turn on, as templates demand. So a question behind a lost answer that has no question before it comes first."""


class NoChat(EdgespecError):
    """There is no chat or turn of this id."""


class NewerFile(EdgespecError):
    """The chats were written by a later version of edgespec."""


class NotOpened(EdgespecError):
    """The file cannot be used now: another program has it, or it may not be written. It is left as it is."""


@dataclass(frozen=True)
class Turn:
    """role: "user" or "assistant". files: names and texts that go with a question. facts: of an answer, see ``routes``;
    None while it is being written, and of a question."""

    id: int
    parent: int | None
    role: str
    content: str
    files: Sequence[Mapping[str, str]]
    facts: Mapping[str, Any] | None
    created: float


@dataclass(frozen=True)
class Chat:
    """options: of sampling and the model, as the page sends them."""

    id: str
    title: str
    pinned: bool
    system: str
    options: Mapping[str, Any]
    leaf: int | None
    updated: float


class Store:
    """All chats. Not for several threads at once. A damaged file is put aside, see ``mended``. Raises NewerFile,
    NotOpened."""

    def __init__(self, path: Path) -> None:
        self.mended = ""
        """what was done to a damaged file, for the user; "" if it was whole"""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(PermissionError):  # a folder that somebody else has made for this user
                make_private(path.parent, path)
            try:
                self._db = _opened(path)
            except sqlite3.OperationalError:
                raise  # a lock, a full disk, no rights: nothing is wrong with the file
            except sqlite3.DatabaseError:
                self._db, self.mended = _rescued(path)
            self._db.execute("DELETE FROM chats WHERE deleted < ?", (time.time() - GRACE_S,))
            # Of a server that was killed while it wrote: these answers are cut off.
            self._db.execute("UPDATE turns SET facts = '{}' WHERE role = 'assistant' AND facts IS NULL")
        except (sqlite3.OperationalError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise NotOpened(f"the chats in {path} cannot be used: {reason}", hint="free it, then try again") from error

    def close(self) -> None:
        self._db.close()

    def create(self, options: Mapping[str, Any] | None = None, title: str = "") -> Chat:
        now, key = time.time(), secrets.token_hex(8)
        with self.together():
            self._db.execute(
                "INSERT INTO chats (id, title, options, created, updated) VALUES (?, ?, ?, ?, ?)",
                (key, title, json.dumps(options or {}), now, now),
            )
        return self.chat(key)

    def chat(self, key: str) -> Chat:
        row = self._db.execute("SELECT * FROM chats WHERE id = ?", (key,)).fetchone()
        if row is None:
            raise NoChat("no such chat", got=key)
        return _chat(row)

    def listed(self) -> list[Chat]:
        """Pinned ones first, then those used last."""
        rows = self._db.execute("SELECT * FROM chats WHERE deleted IS NULL ORDER BY pinned DESC, updated DESC")
        return [_chat(row) for row in rows]

    def search(self, text: str) -> list[tuple[Chat, str]]:
        """Chats with all words of ``text`` in one turn, or in the title, with the place where they are."""
        text = text[:_LONGEST_SEARCH].replace("\0", " ")
        words = " ".join(f'"{word}"*' for word in text.replace('"', " ").split())
        if not words:
            return []
        like = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        rows = self._db.execute(
            """
            WITH hits AS (
                SELECT rowid AS turn, snippet(found, 0, '', '', ' … ', 12) AS place
                FROM found WHERE found MATCH ? ORDER BY rank LIMIT 500
            )
            SELECT chats.*, min(hits.place) AS place FROM hits JOIN turns ON turns.id = hits.turn
            JOIN chats ON chats.id = turns.chat WHERE chats.deleted IS NULL GROUP BY chats.id
            UNION ALL
            SELECT chats.*, '' FROM chats WHERE title LIKE ? ESCAPE '\\' AND deleted IS NULL
            ORDER BY updated DESC LIMIT ?
            """,
            (words, like, 2 * _MOST_FOUND),
        )
        hits: dict[str, tuple[Chat, str]] = {}
        for row in rows:
            chat = _chat(row)
            hits[chat.id] = (chat, row["place"] or hits.get(chat.id, (chat, ""))[1])
        return list(hits.values())[:_MOST_FOUND]

    def change(self, key: str, **fields: Any) -> Chat:
        """Set title, pinned, system, options or leaf."""
        self.chat(key)
        if (leaf := fields.get("leaf")) is not None:
            self._require_turn(key, leaf)
        if "options" in fields:
            fields["options"] = json.dumps(fields["options"])
        with self.together():
            for name, value in fields.items():
                assert name in ("title", "pinned", "system", "options", "leaf")
                self._db.execute(f"UPDATE chats SET {name} = ? WHERE id = ?", (value, key))
        return self.chat(key)

    def delete(self, key: str) -> None:
        self._set_deleted(key, time.time())

    def restore(self, key: str) -> None:
        self._set_deleted(key, None)

    def turns(self, key: str) -> list[Turn]:
        """All branches, in the order in which they were written."""
        rows = self._db.execute("SELECT * FROM turns WHERE chat = ? ORDER BY id", (key,))
        return [_turn(row) for row in rows]

    def facts(self, most: int) -> list[dict[str, Any]]:
        """Of the newest answers of all chats."""
        rows = self._db.execute("SELECT facts FROM turns WHERE facts IS NOT NULL ORDER BY id DESC LIMIT ?", (most,))
        return [json.loads(row["facts"]) for row in rows]

    def branch(self, key: str, leaf: int) -> list[Turn]:
        """From the first turn to ``leaf``."""
        known = {turn.id: turn for turn in self.turns(key)}
        if leaf not in known:
            raise NoChat("no such turn", got=leaf)
        found: list[Turn] = []
        place: int | None = leaf
        while place is not None and place in known:
            found.append(turn := known.pop(place))
            place = turn.parent
        return found[::-1]

    def add(
        self, key: str, parent: int | None, role: str, content: str, files: Sequence[Mapping[str, str]] = ()
    ) -> Turn:
        """A turn behind ``parent``, which becomes the leaf."""
        self.chat(key)
        if parent is not None:
            self._require_turn(key, parent)
        now = time.time()
        with self.together():
            cursor = self._db.execute(
                "INSERT INTO turns (chat, parent, role, content, files, created) VALUES (?, ?, ?, ?, ?, ?)",
                (key, parent, role, content, json.dumps(list(files)), now),
            )
            self._db.execute("UPDATE chats SET leaf = ?, updated = ? WHERE id = ?", (cursor.lastrowid, now, key))
        return self._one(int(cursor.lastrowid or 0))

    def write(self, turn: int, content: str, facts: Mapping[str, Any] | None = None) -> None:
        """The content of an answer so far; with facts it is finished."""
        with self.together():
            found = None if facts is None else json.dumps(facts)
            self._db.execute("UPDATE turns SET content = ?, facts = ? WHERE id = ?", (content, found, turn))

    def _one(self, turn: int) -> Turn:
        return _turn(self._db.execute("SELECT * FROM turns WHERE id = ?", (turn,)).fetchone())

    def _require_turn(self, key: str, turn: int) -> None:
        known = abs(turn) < _MOST_ID and self._db.execute("SELECT 1 FROM turns WHERE id = ? AND chat = ?", (turn, key))
        if not known or known.fetchone() is None:
            raise NoChat("no such turn in this chat", got=turn)

    def _set_deleted(self, key: str, when: float | None) -> None:
        self.chat(key)
        with self.together():
            self._db.execute("UPDATE chats SET deleted = ? WHERE id = ?", (when, key))

    @contextmanager
    def together(self) -> Iterator[None]:
        """All that is written within, or nothing of it."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise


def _opened(path: Path) -> sqlite3.Connection:
    with suppress(FileExistsError), open(path, "xb", opener=private_opener):
        pass  # SQLite's log beside it gets the same mode
    db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
        if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)
        if _version(db) > len(_MIGRATIONS):
            raise NewerFile(
                "the chats were written by a later version of edgespec", got=str(path), hint="upgrade edgespec"
            )
        while (version := _version(db)) < len(_MIGRATIONS):
            script = f"BEGIN IMMEDIATE; {_MIGRATIONS[version]} PRAGMA user_version = {version + 1}; COMMIT;"
            try:
                db.executescript(script)
            except sqlite3.OperationalError:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if _version(db) == version:  # else another process has just done the same
                    raise
    except BaseException:
        db.close()
        raise
    return db


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _rescued(path: Path) -> tuple[sqlite3.Connection, str]:
    """A new file with all that can be read of a damaged one, which is kept under another name."""
    aside = path.with_name(f"{path.stem}.damaged-{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}")
    path.replace(aside)
    with suppress(FileNotFoundError):  # what was written last may be in it alone
        path.with_name(f"{path.name}-wal").replace(aside.with_name(f"{aside.name}-wal"))
    with suppress(OSError):
        path.with_name(f"{path.name}-shm").unlink()
    db = _opened(path)
    db.execute("PRAGMA foreign_keys = OFF")
    rows = 0
    for table, order in product(("chats", "turns"), ("ASC", "DESC")):  # a reader goes on to the first damaged page
        with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(aside)) as old:
            for row in old.execute(f"SELECT * FROM {table} ORDER BY rowid {order}"):
                with suppress(sqlite3.DatabaseError):
                    places = ", ".join("?" * len(row))
                    rows += db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", row).rowcount
    db.executescript(_SHOWN_AGAIN)
    db.execute("PRAGMA foreign_keys = ON")
    return db, f"The file of the chats was damaged. {rows} rows of it were saved; the old file is {aside}."


def _chat(row: sqlite3.Row) -> Chat:
    options = json.loads(row["options"])
    return Chat(row["id"], row["title"], bool(row["pinned"]), row["system"], options, row["leaf"], row["updated"])


def _turn(row: sqlite3.Row) -> Turn:
    facts = None if row["facts"] is None else json.loads(row["facts"])
    files = json.loads(row["files"])
    return Turn(row["id"], row["parent"], row["role"], row["content"], files, facts, row["created"])
