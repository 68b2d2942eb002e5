"""The line on stderr that says which one-time step runs. On a terminal it also says how far the step is."""

from __future__ import annotations

import shutil
import sys
from threading import Lock
from typing import Protocol

from edgespec.errors import printable


class Say(Protocol):
    """Reports a slow step."""

    def __call__(self, what: str, share: float | None = None) -> None:
        """share: of the work that is done; 0 when it begins, 1 when it ends. None: it is not known."""


class ProgressLine:
    """Writes a line for each step. Elsewhere than on a terminal a step is announced once, when it begins.

    is_on: without it nothing is written.
    """

    def __init__(self, is_on: bool) -> None:
        self._is_on = is_on
        self._moves = is_on and sys.stderr.isatty()
        self._open = ""  # the line that the cursor is on
        self._lock = Lock()  # target and draft are loaded side by side

    def __call__(self, what: str, share: float | None = None) -> None:
        if not self._is_on or (share and not self._moves):
            return
        line = f"edgespec: {printable(what)}"
        with self._lock:
            if self._open and self._open != line:
                sys.stderr.write("\n")
            if share is None or not self._moves:
                sys.stderr.write(f"{line}\n")
                self._open = ""
            else:
                room = shutil.get_terminal_size().columns - len(" 100% ")  # a wrapped line could not be written over
                sys.stderr.write(f"\r{line[:room]} {share:4.0%}{'' if share < 1 else chr(10)}")
                self._open = line if share < 1 else ""
            sys.stderr.flush()
