"""Tables on stdout, and lines beside the answer on stderr."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from threading import Timer
from typing import Any

from edgespec.errors import printable

_SLOW_S = 3.0
"""that a user waits without a word"""
_PLAIN = re.compile(r"-{0,2}[A-Za-z0-9_:/\\][A-Za-z0-9_:/\\-]*|[A-Za-z0-9_:/\\.][A-Za-z0-9_:/\\.-]*")
"""a word that cmd.exe and PowerShell take as it is. PowerShell would split ``-a.b``."""
_UNSAFE = re.compile('["\u201c-\u201e%$`\\r\\n]|\\\\$|^[^ ]*[&|<>^][^ ]*$|^$')
"""What cmd.exe or PowerShell replaces between quotes, or ends them with: curly ones, too. Then what PowerShell hands to
a batch file, as the installed ``edgespec.cmd``, without its quotes: ``"R&D"`` would run D."""
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


def line_to_type(words: Iterable[str], *, windows: bool = os.name == "nt") -> str:
    """What to type for these arguments in a shell of this system; "" if no line is safe in both shells of Windows.

    >>> line_to_type(["edgespec", "run", "this & that"], windows=True)
    'edgespec run "this & that"'
    """
    if not windows:
        return command_line(words)
    words = list(words)
    if any(_UNSAFE.search(word) for word in words if not _PLAIN.fullmatch(word)):
        return ""
    return " ".join(word if _PLAIN.fullmatch(word) else f'"{word}"' for word in words)


def command_line(words: Iterable[str]) -> str:
    """These arguments as a POSIX shell reads them, on any system: for what is kept.

    >>> command_line(["edgespec", "run", "What is it?"]), command_line(["edgespec", "run", "at $5"])
    ('edgespec run "What is it?"', "edgespec run 'at $5'")
    """
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """In ``"`` where that is enough, as other shells read it too: cmd.exe knows no ``'``."""
    if shlex.quote(word) == word or set(word) & set('"$`\\!'):
        return shlex.quote(word)
    return f'"{word}"'


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


def figure(value: float) -> str:
    """For people: three digits that tell, and no power of ten.

    >>> figure(0.05512345678), figure(1234.5), figure(999.96), figure(-999.4), figure(0.00001), figure(0.0)
    ('0.0551', '1234', '1000', '-999', '0.00001', '0')
    """
    from decimal import Decimal

    return f"{value:.0f}" if abs(value) >= 1000 else f"{Decimal(f'{value:.3g}'):f}"


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
