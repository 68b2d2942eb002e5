"""The history of a chat is its user's alone, and its loss ends nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgespec.commands import chat
from edgespec.commands.chat_history import PrivateHistory


def test_it_is_there_the_next_time_and_for_nobody_else(tmp_path: Path) -> None:
    file = tmp_path / "chat" / "history"
    PrivateHistory(file).store_string("my secret\nin two lines")
    assert list(PrivateHistory(file).load_history_strings()) == ["my secret\nin two lines"]
    if os.name == "posix":
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        file.chmod(0o644)  # as earlier versions left it
        PrivateHistory(file)
        assert file.stat().st_mode & 0o777 == 0o600


def test_where_it_cannot_be_kept_the_chat_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "chat").write_text("a file where the folder should be")
    history = PrivateHistory(tmp_path / "chat" / "history")
    history.append_string("one")
    history.append_string("two")
    assert history.get_strings() == ["one", "two"]
    assert list(history.load_history_strings()) == []
    assert capsys.readouterr().err.count("not kept") == 1


def test_no_history_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path / "cache"))
    for history, kept in ((False, False), (True, True)):
        with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
            read = chat._editor(history)
            keys.send_text("hello\r")
            assert read() == "hello"
        assert (tmp_path / "cache" / "chat" / "history").is_file() == kept
