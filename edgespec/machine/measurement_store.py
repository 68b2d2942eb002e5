"""What was measured on this machine is kept: a JSON file for each thing, written once and read from then on.

What cannot be read, or makes no sense, is measured again: the types check themselves when they are made. Processes take
turns: of those that want the same thing one measures, and the others read what it found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import TypeVar

import msgspec

from edgespec import cache, files
from edgespec.own_files import replacing

T = TypeVar("T")


def place(kind: str, key: str) -> Path:
    """key: a fingerprint of all that the measurement depends on."""
    return cache.cache_dir() / "measured" / f"{kind}-{key}.json"


def read(file: Path, kind: type[T]) -> T | None:
    with suppress(OSError, ValueError, RecursionError):  # no file, no JSON, no text, no sense
        return msgspec.json.decode(files.read_bytes(file), type=kind)
    return None


def remembered(file: Path, known: Callable[[], T | None], find: Callable[[], T]) -> T:
    """What is known, else what ``find`` finds, which is written to ``file``. A cache that cannot be written only means
    that the next process measures again."""
    found = known()
    if found is None:
        with _turn(file.parent):
            found = known()
            if found is None:
                found = find()
                with suppress(OSError), replacing(file) as out:
                    out.write(msgspec.json.encode(found))
    return found


class _Turn:
    """To measure, with no other thread or process of ours that measures. A measurement may be part of another.

    The system frees the turn if we die.
    """

    def __init__(self) -> None:
        self._threads = RLock()
        self._depth = 0

    @contextmanager
    def __call__(self, folder: Path) -> Iterator[None]:
        with self._threads, ExitStack() as stack:
            if self._depth == 0:
                with suppress(OSError):  # a read-only cache: each for itself
                    self._wait(folder / ".lock", stack)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def _wait(self, lock: Path, stack: ExitStack) -> None:
        from huggingface_hub.utils import WeakFileLock

        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(WeakFileLock(lock, timeout=1))
        except TimeoutError:
            sys.stderr.write("waiting for another edgespec that measures this machine\n")
            stack.enter_context(WeakFileLock(lock))


_turn = _Turn()
