"""Models that are being fetched, each once, whoever asks for it and however often."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future

from edgespec.server.residents import Offer, Residents


class Fetches:
    """A fetch goes on when nobody waits for it any more, and its model is offered then. It may take an hour: so it has
    a thread of its own, which does not hold up the end of the server. What broke off goes on the next time."""

    def __init__(self, residents: Residents) -> None:
        self._residents = residents
        self._running: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str, fetch: Callable[[], Offer]) -> asyncio.Task[None]:
        """The fetch of a model, maybe one that runs already. It raises what ``fetch`` raises. Do not cancel it."""
        if (task := self._running.get(name)) is None:
            task = self._running[name] = asyncio.ensure_future(self._offer(fetch))
            task.add_done_callback(lambda done: self._end(name, done))
        return task

    async def _offer(self, fetch: Callable[[], Offer]) -> None:
        self._residents.add(await asyncio.wrap_future(_beside(fetch)))

    def _end(self, name: str, task: asyncio.Task[None]) -> None:
        del self._running[name]
        if not task.cancelled():
            task.exception()  # whoever asked may be gone, and nobody else is to be told


def _beside(work: Callable[[], Offer]) -> Future[Offer]:
    future: Future[Offer] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="edgespec-fetch", daemon=True).start()
    return future
