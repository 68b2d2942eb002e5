"""Lines on stderr about what takes long."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from typing import Any

import pytest

import edgespec
from edgespec.commands import fetching
from edgespec.console import named_if_slow, note
from edgespec.hub.progress import shown
from edgespec.machine.progress_line import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Made within a test: pytest sets stderr again before it begins."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def until_said(terminal: Terminal) -> str:
    deadline = time.monotonic() + 20
    while not terminal.getvalue() and time.monotonic() < deadline:
        time.sleep(0.002)
    return terminal.getvalue()


def test_what_takes_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with named_if_slow("loading it", 0.001):
        assert until_said(terminal) == "edgespec: loading it\n"


def test_what_is_quick_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with named_if_slow("loading it", 0.05):
        pass
    time.sleep(0.1)
    assert terminal.getvalue() == ""


def _bar() -> None:
    with shown("a model", 10, True, None):
        pass


SAYS: dict[str, Callable[[], None]] = {
    "a line": lambda: note("converting"),
    "a step": lambda: ProgressLine(True)("measuring", 0.5),
    "a bar": _bar,
}


@pytest.mark.parametrize("says", SAYS.values(), ids=SAYS)
def test_what_says_something_by_itself_is_not_named(monkeypatch: pytest.MonkeyPatch, says: Callable[[], None]) -> None:
    terminal = terminal_of(monkeypatch)
    with named_if_slow("loading it", 0.05):
        says()
        time.sleep(0.1)
    assert "loading it" not in terminal.getvalue()


def test_a_line_that_has_begun_ends_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Terminal):
        def write(self, text: str) -> int:
            begun.set()
            time.sleep(0.1)
            return super().write(text)

    begun, terminal = Event(), Slow()
    monkeypatch.setattr(sys, "stderr", terminal)
    with named_if_slow("loading it", 0.001):
        assert begun.wait(20)
    assert terminal.getvalue() == "edgespec: loading it\n"


class Logger:
    """What programs put in the place of stderr."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


class Gone(Logger):
    """A pipe whose reader went away."""

    def write(self, text: str) -> None:
        raise BrokenPipeError


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stderr", [Logger, Gone, closed])
def test_whatever_stderr_is_the_work_goes_on(monkeypatch: pytest.MonkeyPatch, stderr: Callable[[], Any]) -> None:
    there = stderr()
    monkeypatch.setattr(sys, "stderr", there)
    say = ProgressLine(True)
    say("measuring", 0.0)
    say("done")
    with named_if_slow("loading it", 0.001), shown("a model", 10, True, None):
        note("converting")
    if stderr is Logger:
        assert there.text.splitlines() == [
            *("edgespec: measuring", "edgespec: done", "edgespec: fetching a model (one-time)", "edgespec: converting")
        ]


@pytest.mark.parametrize("ends", [BrokenPipeError, ValueError])
def test_a_terminal_that_goes_away_ends_no_step(monkeypatch: pytest.MonkeyPatch, ends: type[Exception]) -> None:
    terminal = terminal_of(monkeypatch)
    say = ProgressLine(True)
    say("measuring", 0.0)
    monkeypatch.setattr(terminal, "flush", lambda: raised(ends))
    say("measuring", 0.5)
    say("something else", 0.5)


def raised(error: type[Exception]) -> None:
    raise error


@pytest.mark.parametrize(
    ("ref", "progress", "named"),
    [(".", True, "pair"), ("..", True, "above"), ("x/some-model", True, "some-model"), (".", False, None)],
)
def test_a_load_that_takes_long_names_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str, progress: bool, named: str | None
) -> None:
    lines: list[str] = []
    here = tmp_path / "above" / "pair"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr(fetching, "fetch_first", lambda options: None)
    monkeypatch.setattr(fetching, "named_if_slow", lambda line: nullcontext(lines.append(line)))
    monkeypatch.setattr("edgespec.loading.load", lambda **options: None)
    fetching.fetch_and_load({"ref": ref}, progress=progress)
    assert lines == ([] if named is None else [f"loading {named}"])


def test_elsewhere_than_on_a_terminal_it_is_not_named(capsys: pytest.CaptureFixture[str]) -> None:
    with named_if_slow("loading it", 0.001):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("progress", "told"), [({}, True), ({"progress": True}, True), ({"progress": False}, False)])
def test_the_library_tells_what_is_done_once_and_can_be_silent(
    tiny_ir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    progress: dict[str, Any],
    told: bool,
) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    for said in (told, False):  # the second time nothing is left to do
        edgespec.load(tiny_ir.parent, draft="none", backend="openvino", num_draft_tokens=0, **progress)
        assert ("(one-time)" in capsys.readouterr().err) == said


def test_a_program_without_a_console_has_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("edgespec.loading._load", lambda ref, options: asked.append(options.progress))
    monkeypatch.setattr(sys, "stderr", None)
    edgespec.load("x")
    assert asked == [False]
