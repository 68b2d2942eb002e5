"""The line on stderr that says which one-time step runs, and how long it will take from now on, as soon as that shows.
On a terminal it also says how far the step is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from threading import Lock
from time import monotonic
from typing import Protocol

from edgespec.console import is_watched, says, tell
from edgespec.errors import printable


class Say(Protocol):
    """Reports a slow step."""

    def __call__(self, what: str, share: float | None = None) -> None:
        """share: of the work that is done; 0 when it begins, 1 when it ends. None: it is not known."""


_SHOWS_S = 5.0
"""A step that has run for so long may be told how long it will go on; one that ends within as much is not."""


class ProgressLine:
    """Writes a line for each step. Elsewhere than on a terminal a step is announced once, when it begins, and a slow
    one once more.

    is_on: without it nothing is written.
    """

    def __init__(self, is_on: bool, clock: Callable[[], float] = monotonic) -> None:
        self._is_on = is_on
        self._clock = clock
        self._moves = is_on and is_watched()
        self._open = ""  # the line that the cursor is on
        self._width = 0  # of what it shows
        self._lock = Lock()  # target and draft are loaded side by side
        self._began: dict[str, tuple[float, float]] = {}
        """of each step that runs: when it was first heard of, and how far it was then"""
        self._told: set[str] = set()
        self._noted: set[str] = set()

    def __call__(self, what: str, share: float | None = None) -> None:
        if not self._is_on:
            return
        says()
        line = f"edgespec: {printable(what)}"
        with self._lock:
            left_s = 0.0 if share is None else self._left_s(line, share)
            if self._moves:
                self._move(line, share, left_s)
            elif not share:
                tell(f"{line}\n")
            elif left_s > _SHOWS_S and line not in self._told:
                self._told.add(line)
                tell(f"{line}: about {left_s:.0f} s left\n")

    def once(self, what: str, share: float | None = None) -> None:
        """The same, but a line that is no step is written once: it may hold for a target and its draft."""
        if share is None:
            with self._lock:
                if what in self._noted:
                    return
                self._noted.add(what)
        self(what, share)

    def _left_s(self, line: str, share: float) -> float:
        """Seconds from now to the end of a step, at its pace so far. 0: it is too early to say."""
        now = self._clock()
        if not share:  # it may have failed before
            self._began.pop(line, None)
            self._told.discard(line)
        began, before = self._began.setdefault(line, (now, share))
        if share >= 1:
            del self._began[line]
            self._told.discard(line)
        if now - began < _SHOWS_S or share <= before:
            return 0.0
        return (now - began) / (share - before) * (1 - share)

    def _move(self, line: str, share: float | None, left_s: float) -> None:
        if self._open and self._open != line:
            tell("\n")
        if share is None:
            tell(f"{line}\n")
            self._open = ""
            return
        left = f", about {left_s:.0f} s left" if left_s >= 1 else ""
        ends = f" {share:4.0%}{left}"
        room = shutil.get_terminal_size().columns - len(f"{ends} ")  # a wrapped line could not be written over
        shown = line[:room] + ends
        over = self._width if self._open else 0
        tell(f"\r{shown:{over}}{'' if share < 1 else chr(10)}")
        self._open, self._width = line if share < 1 else "", len(shown)
