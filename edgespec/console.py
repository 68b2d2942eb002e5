"""Tables on stdout, and lines beside the answer on stderr."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from edgespec.errors import printable


def note(line: str) -> None:
    """One line on stderr about what edgespec does. It begins with the program's name, as among lines of others in a
    log. The line may hold words of strangers."""
    sys.stderr.write(f"edgespec: {printable(line)}\n")
    sys.stderr.flush()


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
