"""Tables on stdout, and lines beside the answer on stderr."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from threading import Timer
from typing import Any

from edgespec.errors import printable

_SLOW_S = 3.0
"""that a user waits without a word"""
_lines = count()


def note(line: str) -> None:
    """One line on stderr about what edgespec does. It begins with the program's name, as among lines of others in a
    log. The line may hold words of strangers."""
    says()
    tell(f"edgespec: {printable(line)}\n")


def tell(text: str) -> None:
    """Write on stderr. If its reader is gone or it is closed, nobody is told, and the work goes on."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def command_line(words: Iterable[str]) -> str:
    """What to type for these arguments: POSIX shells, cmd.exe and PowerShell read it alike. cmd.exe knows no ``'``.

    A word with ``"``, ``$`` and the like is written for the shells of this system.

    >>> command_line(["edgespec", "run", "What is it?"])
    'edgespec run "What is it?"'
    """
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if shlex.quote(word) == word:
        return word
    if not set(word) & set('"$`\\!%'):
        return f'"{word}"'
    return subprocess.list2cmdline([word]) if os.name == "nt" else shlex.quote(word)


def is_watched() -> bool:
    """Whether stderr is a terminal. A program may have put an object there that can only write."""
    isatty = getattr(sys.stderr, "isatty", None)
    with suppress(OSError, ValueError):
        return isatty is not None and bool(isatty())
    return False


def says() -> None:
    """Something is shown on stderr: whoever waits sees why."""
    next(_lines)


@contextmanager
def named_if_slow(line: str, after_s: float = _SLOW_S) -> Iterator[None]:
    """Say on a terminal what takes so long, unless it says something by itself."""
    if not is_watched():
        yield
        return
    before = next(_lines)

    def name() -> None:
        if next(_lines) == before + 1:
            note(line)

    timer = Timer(after_s, name)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # a line that has begun must not end within the answer


def row(table: Any, *cells: str) -> None:
    """Add a row; cells may be words of strangers."""
    table.add_row(*map(printable, cells))


def width() -> int:
    """Columns: of the terminal, and elsewhere enough for lines that grep and cut can work with."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 200


def show(*things: Any) -> None:
    """Render first, then write at once: rich would turn a closed pipe into an exit code of its own.

    A text is left to the terminal to wrap, which copies it in one piece: it may hold a path.
    """
    from rich.console import Console

    console = Console(markup=False, width=width())
    with console.capture() as captured:
        for thing in things:
            is_text = isinstance(thing, str)
            console.print(printable(thing) if is_text else thing, soft_wrap=is_text, highlight=not is_text)
    sys.stdout.write(captured.get())
    sys.stdout.flush()
