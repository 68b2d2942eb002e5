"""What a download shows: a bar on a terminal, else one line."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from edgespec.errors import printable


def bars(progress: bool) -> Any:
    """The progress bar class for huggingface_hub: its own on a terminal, else one that shows nothing."""
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": True}))

    return tqdm if progress and sys.stderr.isatty() else Silent


def parts_of(whole: Any) -> Any:
    """A progress bar class for huggingface_hub that shows nothing itself and moves the bar ``whole``."""

    class Part:
        def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
            whole.update(initial)

        def update(self, count: int) -> None:
            whole.update(count)

        def __enter__(self) -> Part:
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            pass

    return Part


def tell(what: str, progress: bool) -> None:
    """A line on stderr about what takes long, where there is no bar to show it."""
    if progress and not sys.stderr.isatty():
        sys.stderr.write(f"fetching {printable(what)} (one-time)\n")
