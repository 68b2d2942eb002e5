"""One text at a time: a turn is the right to use a pipeline's models. Any thread may ask for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from typing import TypeVar

from edgespec.errors import SettingError

T = TypeVar("T")

_RECHECK_S = 1.0
"""seconds. A waiting thread checks again after this time: a finalizer may free the turn inside this lock, unnoticed."""


class _Hold:
    """The state of one text's turn."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None  # the thread that took the text's last step
        self.stepping = False


class Turn:
    """Held by one text, from its first step to its end.

    - Another thread waits. Threads get the turn in the order in which they asked.
    - A thread that has read part of a text may begin another one. The first text is over then. Reading on raises an
      error.
    - A text frees the turn when it is read to its end, closed, or garbage-collected.
    - Within a step, for example in a callback, no text can begin.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: _Hold | None = None
        self._waiting: deque[_Hold] = deque()

    def run(self, steps: Generator[T, None, None], *, wait: bool = True) -> Generator[T, None, None]:
        """Yield from ``steps``, while nobody else takes a step. Raises SettingError if it may not begin or go on."""
        hold = _Hold()
        try:
            self._take(hold, wait)
            for step in steps:
                self._pause(hold)
                yield step
                self._resume(hold)
        finally:
            try:
                steps.close()
            finally:
                self._release(hold)

    def _take(self, hold: _Hold, wait: bool) -> None:
        hold.thread, hold.stepping = threading.current_thread(), True
        with self._changed:
            holder = self._holder
            if holder is not None and holder.thread is hold.thread:
                if holder.stepping:
                    raise SettingError(
                        "a text cannot begin inside a callback of another one on the same pipeline",
                        hint="begin it when the callback has returned, or load two pipelines",
                    )
                self._holder = hold
                return
            if not wait and (holder is not None or self._waiting):
                raise SettingError(
                    "this pipeline is busy with another text", hint="wait for it (wait=True), or load two pipelines"
                )
            self._waiting.append(hold)
            try:
                while self._holder is not None or self._waiting[0] is not hold:
                    self._changed.wait(_RECHECK_S)
                self._holder = hold
            finally:
                self._waiting.remove(hold)
                self._changed.notify_all()  # another text may be first in the queue now

    def _pause(self, hold: _Hold) -> None:
        with self._changed:
            hold.stepping = False

    def _resume(self, hold: _Hold) -> None:
        with self._changed:
            if self._holder is not hold:
                raise SettingError(
                    "this stream is over: another generation has begun on its pipeline",
                    hint="finish one stream before the next, or load two pipelines",
                )
            hold.thread, hold.stepping = threading.current_thread(), True

    def _release(self, hold: _Hold) -> None:
        with self._changed:
            if self._holder is hold:
                self._holder = None
                self._changed.notify_all()
