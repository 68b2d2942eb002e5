"""How many requests may be on their way at once: each holds what it asked for, and waits for those before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from edgespec.server.refusals import Busy

_LEAST_RETRY_S = 1.0


class Places:
    """Of each model. longest_queue: requests that may wait, also for the model to load, while one is answered."""

    def __init__(self, longest_queue: int = 64) -> None:
        self._most = 1 + longest_queue
        self._taken: Counter[str] = Counter()

    def enter(self, model: str, *, ending: int = 0, usual_s: float = 0.0, is_in: bool = False) -> None:
        """Raises Busy. ending: how many of those on their way this one ends. usual_s: for one request. is_in: an
        earlier part of the request had a place."""
        taken = self._taken[model]
        if taken - ending >= self._most and not is_in:
            raise Busy(f"{model} has {taken - 1} requests waiting", retry_after_s=max(_LEAST_RETRY_S, usual_s * taken))
        self._taken[model] += 1

    def leave(self, model: str) -> None:
        self._taken[model] -= 1

    @contextmanager
    def one(self, model: str) -> Iterator[None]:
        """Raises Busy."""
        self.enter(model)
        try:
            yield
        finally:
            self.leave(model)
