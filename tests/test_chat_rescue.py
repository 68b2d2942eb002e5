"""What is saved of a damaged file of chats, and how it is shown."""

from pathlib import Path

import pytest

from edgespec.server.chat.store import Store
from tests.test_chat_store import a_chat

LOST = "(This turn was lost.)"


def test_a_damaged_file_is_put_aside_and_what_can_be_read_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    store = Store(path)
    for number in range(300):
        a_chat(store, f"question {number}" * 20, "answer" * 100)
    store.close()
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)
    again = Store(path)
    assert "damaged" in again.mended
    assert len(again.listed()) > 100
    assert again.search("question")
    assert any("damaged-" in other.name for other in tmp_path.iterdir())
    again.close()
    assert Store(path).mended == ""


def test_the_newest_turns_are_saved_from_behind_a_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    store = Store(path)
    chat = a_chat(store, *(f"turn {number} " + "x" * 3000 for number in range(200)))
    lost = a_chat(store, *(f"last {number} " + "x" * 3000 for number in range(10)))
    store._db.execute("UPDATE chats SET leaf = 10000 WHERE id = ?", (lost,))  # of a turn that could not be read
    end = store.turns(lost)[-1].id
    store.close()
    content = bytearray(path.read_bytes())
    place = content.index(b"turn 100 ") // 4096 * 4096
    content[place : place + 4096] = bytes(4096)
    path.write_bytes(content)
    again = Store(path)
    assert again.mended
    saved = [turn.content.split(" x")[0] for turn in again.turns(chat)]
    assert saved[0] == "turn 0" and saved[-1] == "turn 199" and len(saved) > 190
    assert again.chat(lost).leaf == end
    assert len(again.branch(lost, end)) == 10


def test_turns_that_are_saved_are_shown(tmp_path: Path) -> None:
    """Also where the row of their chat is lost, or a turn between them."""
    path = tmp_path / "chats.sqlite"
    store = Store(path)
    headless = a_chat(store, "first\nline", "one", "two")
    torn = a_chat(store, "zero", "one", "two", "three", "four", "five")
    store._db.execute("PRAGMA foreign_keys = OFF")
    store._db.execute("DELETE FROM chats WHERE id = ?", (headless,))
    store._db.execute("DELETE FROM turns WHERE chat = ? AND content IN ('two', 'three')", (torn,))
    a_chat(store, *("x" * 3000 for _ in range(20)))
    store.close()
    content = bytearray(path.read_bytes())
    content[-4096:] = bytes(4096)
    path.write_bytes(content)
    again = Store(path)
    assert again.mended
    assert {chat.id: chat.title for chat in again.listed()}[headless] == "first line"
    for key, said in ((headless, ["first\nline", "one", "two"]), (torn, ["zero", LOST, "four", "five"])):
        branch = again.branch(key, again.chat(key).leaf or 0)
        assert [turn.content for turn in branch] == said
        assert [turn.role for turn in branch] == (["user", "assistant"] * 2)[: len(said)], "as templates demand"
    roots = [turn.content for turn in again.turns(torn) if turn.parent is None]
    assert roots == ["zero"]


def rescued(store: Store, path: Path, *lost: str) -> Store:
    """Without the turns of these contents, as after a damage that took them."""
    store._db.executemany("DELETE FROM turns WHERE content = ?", [(content,) for content in lost])
    a_chat(store, *("x" * 3000 for _ in range(20)))
    store.close()
    content = bytearray(path.read_bytes())
    content[-4096:] = bytes(4096)
    path.write_bytes(content)
    again = Store(path)
    assert again.mended
    return again


@pytest.mark.parametrize(
    ("lost", "left"),
    [
        (["q2", "a2"], ["q1", LOST, "q3", "a3"]),
        (["a1", "q2"], [LOST, "a2", "q3", "a3"]),
        (["a2", "q3"], ["q1", "a1", LOST, "a3"]),
        (["q1", "a1"], ["q2", "a2", "q3", "a3"]),
        (["q1", "a1", "q2"], [LOST, "a2", "q3", "a3"]),
    ],
)
def test_roles_alternate_whatever_is_lost(tmp_path: Path, lost: list[str], left: list[str]) -> None:
    """As templates demand. A user's turn is the first."""
    store = Store(path := tmp_path / "chats.sqlite")
    key = a_chat(store, "q1", "a1", "q2", "a2", "q3", "a3")
    again = rescued(store, path, *lost)
    branch = again.branch(key, again.chat(key).leaf or 0)
    assert [turn.content for turn in branch] == left
    assert [turn.role for turn in branch] == (["user", "assistant"] * 3)[: len(left)]


def test_a_lost_first_question_is_none_behind_another_one(tmp_path: Path) -> None:
    """It was edited before its answer came."""
    store = Store(path := tmp_path / "chats.sqlite")
    key = a_chat(store, "never answered")
    store.add(key, store.add(key, None, "user", "edited").id, "assistant", "answer")
    again = rescued(store, path, "edited")
    assert [turn.content for turn in again.branch(key, again.chat(key).leaf or 0)] == [LOST, "answer"]


@pytest.mark.parametrize("lost", ["q1", "a1", "q2"])
def test_a_lost_turn_is_known_as_lost(tmp_path: Path, lost: str) -> None:
    """What stood behind it becomes no answer to another question, and is behind some turn: it can be asked again."""
    path = tmp_path / "chats.sqlite"
    store = Store(path)
    key = a_chat(store, "q1", "a1", "q2", "a2")
    other = store.add(key, store.turns(key)[2].id, "assistant", "another answer").id
    again = rescued(store, path, lost)
    turns = {turn.content: turn for turn in again.turns(key)}
    said = [LOST if content == lost else content for content in ("q1", "a1", "q2", "a2")]
    assert [turn.content for turn in again.branch(key, turns["a2"].id)] == said
    assert [turn.content for turn in again.branch(key, other)] == [*said[:3], "another answer"]
    assert [turn.role for turn in again.branch(key, other)] == ["user", "assistant"] * 2
    assert [turn.id for turn in again.turns(key)] == sorted(turn.id for turn in turns.values())
