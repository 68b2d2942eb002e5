"""A generation that nobody wants any more ends between two chunks of its prompt, or between two rounds."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress

from edgespec.protocols import Progress


class _Cancelled(Exception):
    """The prompt need not be read any further."""


def stopping(progress: Progress | None, cancelled: Callable[[], bool] | None) -> Progress | None:
    """``progress`` that also ends a prefill between two chunks."""
    if cancelled is None:
        return progress

    def step(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total)
        if done < total and cancelled():
            raise _Cancelled

    return step


def until_cancelled(pieces: Iterator[str]) -> Generator[str, None, None]:
    with suppress(_Cancelled):
        yield from pieces
