"""The store of what was measured on this machine: one JSON file for each measurement, written once and then read.

A file that cannot be read, or makes no sense, is measured again. The types check themselves on construction. Processes
take turns: if several want the same measurement, one measures, and the others read its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import TypeVar

import msgspec

from edgespec import cache, files
from edgespec.console import note
from edgespec.own_files import replacing

T = TypeVar("T")


def file_of(kind: str, key: str) -> Path:
    """The file of a measurement. key: a fingerprint of all that the measurement depends on."""
    return cache.cache_dir() / "measured" / f"{kind}-{key}.json"


def read(file: Path, kind: type[T]) -> T | None:
    with suppress(OSError, ValueError, RecursionError):  # no file, no JSON, no text, no sense
        return msgspec.json.decode(files.read_bytes(file), type=kind)
    return None


def remembered(file: Path, known: Callable[[], T | None], find: Callable[[], T]) -> T:
    """The known result, else the result of ``find``, which is written to ``file``. If the cache cannot be written, the
    next process measures again."""
    found = known()
    if found is None:
        with _turn(file.parent):
            found = known()
            if found is None:
                found = find()
                write(file, found)
    return found


def write(file: Path, found: object) -> None:
    """If the cache cannot be written, the next process measures again."""
    with suppress(OSError), replacing(file) as out:
        out.write(msgspec.json.encode(found))


def remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink(missing_ok=True)


class _Turn:
    """The right to measure, which no other thread or process of ours has meanwhile. A measurement may be part of
    another one.

    The system frees the turn if the process dies.
    """

    def __init__(self) -> None:
        self._threads = RLock()
        self._depth = 0

    @contextmanager
    def __call__(self, folder: Path) -> Iterator[None]:
        with self._threads, ExitStack() as stack:
            if self._depth == 0:
                with suppress(OSError):  # a read-only cache: each process measures by itself
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
            note("waiting for another edgespec that measures this machine")
            stack.enter_context(WeakFileLock(lock))


_turn = _Turn()
