"""What a download shows: a bar on a terminal, else one line, or whatever watches it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from edgespec.console import is_watched, note, says
from edgespec.errors import EdgespecError


class Paused(EdgespecError):
    """A download was ended by who watches it. What is there stays."""


class Bar(Protocol):
    """n: bytes so far."""

    n: int

    def update(self, count: int) -> object:
        """Move by so many bytes; backwards where a server sends all of them again. May raise ``Paused``."""


class Watch(Bar, Protocol):
    """A bar of a program's own. It hears of the end only by the return of the call."""

    total: int | None


@contextmanager
def shown(what: str, total: int | None, progress: bool, watch: Watch | None) -> Iterator[Bar]:
    """The bar of a download."""
    if watch is not None:
        watch.n, watch.total = 0, total
        yield watch
        return
    tell(what, progress)
    if progress:
        says()
    with bars(progress)(desc=what, total=total, unit="B", unit_scale=True) as bar:
        yield bar


def bars(progress: bool) -> Any:
    """The progress bar class for huggingface_hub: its own on a terminal, else one that shows nothing."""
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": True}))

    return tqdm if progress and is_watched() else Silent


def tell(what: str, progress: bool) -> None:
    """A line on stderr about what takes long, where there is no bar to show it."""
    if progress and not is_watched():
        note(f"fetching {what} (one-time)")
