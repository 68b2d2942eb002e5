"""The file of chats: branches, search, undo, damage, versions, and what a kill leaves."""

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgespec.server.chat import exchange
from edgespec.server.chat.store import GRACE_S, NewerFile, NoChat, NotOpened, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "chats.sqlite")


def a_chat(store: Store, *turns: str) -> str:
    key, parent = store.create(title=turns[0]).id, None
    for number, content in enumerate(turns):
        parent = store.add(key, parent, "assistant" if number % 2 else "user", content).id
    return key


def test_an_edited_question_is_a_branch_and_the_old_one_stays(store: Store) -> None:
    key = a_chat(store, "one", "eins", "two", "zwei")
    first = store.turns(key)[1]
    store.add(key, first.id, "user", "three")
    assert [turn.content for turn in store.branch(key, store.chat(key).leaf or 0)] == ["one", "eins", "three"]
    assert [turn.content for turn in store.turns(key)] == ["one", "eins", "two", "zwei", "three"]
    store.change(key, leaf=store.turns(key)[3].id)
    assert [turn.content for turn in store.branch(key, store.chat(key).leaf or 0)] == ["one", "eins", "two", "zwei"]


def test_a_turn_of_another_chat_is_no_parent(store: Store) -> None:
    one, other = a_chat(store, "one"), a_chat(store, "two")
    with pytest.raises(NoChat):
        store.add(other, store.turns(one)[0].id, "user", "x")
    with pytest.raises(NoChat):
        store.change(other, leaf=store.turns(one)[0].id)


def test_deleting_can_be_undone_until_the_grace_is_over(store: Store, tmp_path: Path) -> None:
    key = a_chat(store, "one")
    store.delete(key)
    assert (store.listed(), store.search("one")) == ([], [])
    store.restore(key)
    assert [chat.id for chat in store.listed()] == [key]
    store.delete(key)
    store._db.execute("UPDATE chats SET deleted = ?", (time.time() - GRACE_S - 1,))
    store.close()
    again = Store(tmp_path / "chats.sqlite")
    with pytest.raises(NoChat):
        again.restore(key)
    assert again.turns(key) == []


def test_search_finds_words_in_turns_and_titles(store: Store) -> None:
    key = a_chat(store, "Warum ist der Himmel blau?", "Because of Rayleigh's 100% scattering.")
    a_chat(store, "something else", "entirely")
    for text in ("himmel", "rayleigh scat", "Him", 'blau "'):
        assert [chat.id for chat, _ in store.search(text)] == [key], text
    assert store.search("100%")[0][0].id == key
    assert [store.search(text) for text in ("absent", "", '"', "%", "him NOT blau")] == [[]] * 5


def test_ten_thousand_chats_are_searched_quickly(store: Store) -> None:
    words = [f"w{number}" for number in range(500)]
    draw = random.Random(1)
    with store.together():
        for _ in range(10_000):
            a_chat(store, " ".join(draw.choices(words, k=12)), " ".join(draw.choices(words, k=40)))
    rare = a_chat(store, "a needle here")
    fastest = []
    for text, least in (("needle", 1), ("w1 w2", 10), ("w7", 50)):
        began = time.perf_counter()
        hits = store.search(text)
        fastest.append(time.perf_counter() - began)
        assert len(hits) >= least
    assert store.search("needle")[0][0].id == rare
    assert min(fastest) < 0.1


@pytest.mark.skipif(os.name == "nt", reason="the user's folder is private there")
def test_chats_are_the_users_own(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    old = folder / "chats.sqlite"
    for _ in range(2):
        store = Store(old)
        a_chat(store, "secret")
        assert {path.stat().st_mode & 0o777 for path in (*folder.glob("*"),)} == {0o600}
        assert folder.stat().st_mode & 0o777 == 0o700
        store.close()
        old.chmod(0o644)  # as versions before have made it


def test_a_file_that_is_no_database_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    path.write_bytes(b"no database at all" * 100)
    store = Store(path)
    assert store.mended
    assert any(other.read_bytes()[:2] == b"no" for other in tmp_path.iterdir() if other != path)


def test_a_file_that_another_program_has_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chats.sqlite"
    store = Store(path)
    a_chat(store, "one")
    store.close()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **options | {"timeout": 0.05}))
    other = connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("UPDATE chats SET title = 'two'")
    with pytest.raises(NotOpened, match="locked"):
        Store(path)
    other.close()
    again = Store(path)
    assert ([chat.title for chat in again.listed()], again.mended) == (["two"], "")
    assert not any("damaged" in each.name for each in tmp_path.iterdir())


def test_what_was_written_last_is_saved_from_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    store = Store(path)
    for number in range(100):
        a_chat(store, f"question {number}" * 20, "answer" * 100)
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    a_chat(store, "in the log alone")
    killed = {end: path.with_name(path.name + end).read_bytes() for end in ("", "-wal")}
    store.close()
    content = bytearray(killed[""])
    content[len(content) // 2 : len(content) // 2 + 4096] = bytes(4096)
    path.write_bytes(content)
    path.with_name(path.name + "-wal").write_bytes(killed["-wal"])
    again = Store(path)
    assert "damaged" in again.mended
    assert "in the log alone" in [chat.title for chat in again.listed()]


def test_two_servers_may_make_the_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chats.sqlite"
    from edgespec.server.chat import store as module

    version = module._version
    first: list[sqlite3.Connection] = []

    def slow(db: sqlite3.Connection) -> int:
        found = version(db)
        if found == 0 and not first:
            first.append(db)
            a_chat(Store(path), "of the other server")
        return found

    monkeypatch.setattr(module, "_version", slow)
    store = Store(path)
    assert ([chat.title for chat in store.listed()], store.mended) == (["of the other server"], "")


def test_an_answer_that_was_killed_is_known_as_cut_off(store: Store, tmp_path: Path) -> None:
    key = a_chat(store, "one", "ein")
    store.close()
    assert [turn.facts for turn in Store(tmp_path / "chats.sqlite").turns(key)] == [None, {}]


def test_any_words_can_be_searched(store: Store) -> None:
    a_chat(store, "one two")
    for text in ("\0", "one\0two", "one " * 30_000, "x" * 60_000, "-", "NEAR(", "*"):
        store.search(text)
    assert store.search("one\0two")


def test_a_number_that_is_no_turn_is_none(store: Store) -> None:
    key = a_chat(store, "one")
    for number in (2**63, -(2**70)):
        with pytest.raises(NoChat):
            store.add(key, number, "user", "x")
        with pytest.raises(NoChat):
            store.change(key, leaf=number)


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite"
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(NewerFile, match="later version"):
        Store(path)


def test_an_export_reads_back_in_with_its_branches(store: Store) -> None:
    key = a_chat(store, "one", "eins")
    store.add(key, store.turns(key)[0].id, "assistant", "uno")
    store.add(key, None, "user", "with a file", [{"name": "ü.py", "text": "x = 1"}])
    store.change(key, leaf=store.turns(key)[1].id, pinned=True, system="Be brief.", options={"temperature": 0.5})
    text = exchange.jsonl(store, store.listed())
    assert exchange.read_in(store, text) == 1
    copy = next(chat for chat in store.listed() if chat.id != key)
    assert exchange.jsonl(store, [copy]).count("\n") == 5
    assert (copy.title, copy.pinned, copy.system, copy.options) == ("one", True, "Be brief.", {"temperature": 0.5})
    assert [turn.content for turn in store.branch(copy.id, copy.leaf or 0)] == ["one", "eins"]
    assert [(turn.content, list(turn.files)) for turn in store.turns(copy.id)] == [
        (turn.content, list(turn.files)) for turn in store.turns(key)
    ]


def test_conversations_of_other_tools_are_read(store: Store) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "Hi"},
    ]
    assert exchange.read_in(store, json.dumps({"messages": messages})) == 1
    chat = store.listed()[0]
    assert (chat.title, chat.system) == ("Hello there", "Be brief.")
    assert exchange.markdown(chat, store.turns(chat.id)).endswith("## User\n\nHello there\n\n## Assistant\n\nHi\n")


def test_line_ends_of_all_kinds_are_part_of_a_text(store: Store) -> None:
    texts = ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\r\nh", "\u2028"]
    a_chat(store, *texts)
    copied = exchange.jsonl(store, store.listed()).replace("\n", "\r\n")
    assert exchange.read_in(store, copied) == 1
    assert [[turn.content for turn in store.turns(chat.id)] for chat in store.listed()] == [texts, texts]


def test_what_the_page_could_not_show_does_not_get_in(store: Store) -> None:
    head = {"chat": "x", "options": {"temperature": 0.5, "mood": "\u00fc", "deep": [1e300]}}
    facts = {"why": "no list", "timings": 7, "context": 10**40}
    turn = {"id": 1, "role": "assistant", "content": "y", "facts": facts}
    assert exchange.read_in(store, f"{json.dumps(head)}\n{json.dumps(turn)}\n") == 1
    [chat] = store.listed()
    assert chat.options == {"temperature": 0.5}
    assert [turn.facts for turn in store.turns(chat.id)] == [{"finish": "stop"}]


def test_parts_and_empty_contents_of_other_tools_are_read(store: Store) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "you"}]},
        {"role": "assistant", "content": None},
    ]
    exchange.read_in(store, json.dumps({"messages": messages}))
    assert [turn.content for turn in store.turns(store.listed()[0].id)] == ["Hello you", ""]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        r'{"chat": "x", "options": {"model": "\ud800"}}',
        '{"chat": "x", "options": {"temperature": "warm"}}',
        '{"chat": "x", "options": {"temperature": -1}}',
        '{"chat": "x", "options": {"seed": 99999999999999999999}}',
        '{"messages": [{"role": "user", "content": 7}]}',
        "[1]",
        '{"id": 1}',
        '{"chat": "x"}\n{"id": 1, "role": "root", "content": ""}',
        '{"chat": "x"}\n{"id": 1, "parent": 7, "role": "user", "content": ""}',
        '{"messages": [{"role": "user"}]}',
    ],
)
def test_a_file_without_chats_is_refused_and_changes_nothing(store: Store, text: str) -> None:
    a_chat(store, "one")
    good = '{"chat": "good"}\n'
    with pytest.raises(exchange.NotChats):
        exchange.read_in(store, good + text if text else text)
    assert [chat.title for chat in store.listed()] == ["one"]


KILLED = """
import sys, time
from pathlib import Path
from edgespec.server.chat.store import Store
store = Store(Path(sys.argv[1]))
key = store.create(title="t").id
turn = store.add(key, None, "assistant", "").id
for number in range(10**6):
    store.write(turn, "word " * number)
    print(number, flush=True)
"""


@pytest.mark.parametrize("seed", range(5))
def test_a_kill_loses_nothing_that_was_written(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "chats.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    last = 0
    for line in writer.stdout:
        last = int(line)
        if last >= 20 + 13 * seed:
            break
    writer.kill()
    last = max([last, *(int(line) for line in writer.stdout if line.strip().isdigit())])
    writer.wait()
    writer.stdout.close()
    store = Store(path)
    assert store.mended == ""
    content = store.turns(store.listed()[0].id)[0].content
    assert len(content) // 5 >= last
