"""``edgespec infill``: places in files, what is no place or no text, and what is printed."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from edgespec import cli, loading, pipeline
from edgespec.commands.infill import Place
from edgespec.drafters.ngram import NGram
from edgespec.errors import SettingError
from tests.test_infill import BEFORE, BEHIND, QWEN, faked

Ended = tuple[int, str, str]


@pytest.fixture
def infill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command in this process, on a random model; its model is loaded only where the input is right."""
    monkeypatch.setattr(loading, "load", lambda **options: faked(tmp_path, QWEN, NGram()))
    monkeypatch.setattr("edgespec.commands.answer._versions", dict)

    def run(*arguments: str, stdin: bytes = b"") -> Ended:
        monkeypatch.setattr(sys, "argv", ["edgespec", "infill", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_help_names_the_default_length_of_each_text() -> None:
    lengths = {"run": pipeline.DEFAULT_NEW_TOKENS, "infill": pipeline.DEFAULT_HOLE_TOKENS}
    for name, length in lengths.items():
        command = cli.cli.get_command(click.Context(cli.cli), name)
        assert command is not None
        [option] = [option for option in command.params if option.name == "max_new_tokens"]
        assert isinstance(option, click.Option) and (option.help or "").startswith(f"Default: {length}")


def test_a_place_is_read_from_the_right_and_counts_characters() -> None:
    assert Place.of(r"C:\a b\x.py:3:14") == Place(r"C:\a b\x.py", 3, 14)
    assert Place.of("a:1:2:3:4") == Place("a:1:2", 3, 4)
    text = "äöü = 'x😀y'\r\n\r\nz\n"
    assert Place("f", 1, 1).split(text) == ("", text)
    assert Place("f", 1, 9).split(text) == ("äöü = 'x", "😀y'\r\n\r\nz\n")
    assert Place("f", 1, 12).split(text)[1] == "\r\n\r\nz\n"
    assert Place("f", 2, 1).split(text)[1] == "\r\nz\n"
    assert Place("f", 4, 1).split(text) == (text, "")
    for line, column in ((1, 13), (2, 2), (4, 2), (5, 1), (9**9, 1)):
        with pytest.raises(SettingError, match="has no (line|column) .*; allowed: 1 to "):
            Place("f", line, column).split(text)


@pytest.mark.parametrize(
    "place", ["", "a.py", "a.py:3", "a.py:x:1", "a.py:0:1", "a.py:1:0", ":1:1", "a.py:1:1:", "1:1"]
)
def test_what_is_no_place_is_refused(infill: Callable[..., Ended], place: str) -> None:
    code, out, err = infill(place)
    assert (code, out) == (2, "") and "FILE:LINE:COL" in err and len(err.splitlines()) == 1


def test_what_is_no_text_file_is_refused(infill: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "latin").write_bytes("né\n".encode("latin-1"))
    (tmp_path / "fine.py").write_text("x\n")
    for name, reason in (
        ("missing", "cannot read"),
        ("binary", "binary"),
        ("latin", "not valid UTF-8"),
        (".", "cannot"),
    ):
        for arguments in ((f"{tmp_path / name}:1:1",), (f"{tmp_path}/fine.py:1:1", "--files", str(tmp_path / name))):
            code, out, err = infill(*arguments)
            assert (code, out) == (2, "") and reason in err and len(err.splitlines()) == 1
    for words in (["-:1:1"], ["--", "-:1:1"]):
        code, _, err = infill(*words, stdin=b"\xff")
        assert code == 2 and "standard input is not valid UTF-8; got byte 0xff at 0" in err
    code, _, err = infill(f"{tmp_path}/fine.py:7:1")
    assert code == 2 and "fine.py has no line 7; allowed: 1 to 2" in err


def test_only_the_new_text_is_printed(infill: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(BEFORE + BEHIND, newline="")
    (tmp_path / "b.py").write_text("x = 1\n")
    asked = (f"{tmp_path}/a.py:3:1", "--path", "a.py", "--files", str(tmp_path / "b.py"), "-n", "9")
    code, out, err = infill(*asked)
    expected = faked(tmp_path / "again", QWEN, NGram()).infill(
        BEFORE, BEHIND, files={str(tmp_path / "b.py"): "x = 1\n"}, path="a.py", max_new_tokens=9
    )
    assert (code, out) == (0, expected.text + "\n") and "9 tokens" in err
    figures: dict[str, Any] = json.loads(infill(*asked, "--json")[1])
    assert figures["text"] == expected.text and figures["prompt_tokens"] == expected.stats.prompt_tokens
    piped = infill("-:3:1", *asked[1:], stdin=(BEFORE + BEHIND).encode())
    assert piped[:2] == (0, expected.text + "\n")
