"""Models that are being fetched, each once, whoever asks for it and however often."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from edgespec.errors import printable
from edgespec.hub.progress import Paused, Watch
from edgespec.process_end import PREFIX
from edgespec.server import stderr
from edgespec.server.refusals import without_folders
from edgespec.server.residents import Offer, Residents


@dataclass
class Progress:
    """How far a fetch is. total: bytes, once they are known. is_pausing: it ends at its next bytes."""

    n: int = 0
    total: int | None = None
    is_pausing: bool = False

    def update(self, count: int) -> None:
        self.n += count
        if self.is_pausing:
            raise Paused("the download is paused", hint="begin it again to go on")


class Fetches:
    """A fetch goes on when nobody waits for it any more, and its model is offered then. It may take an hour: so it has
    a thread of its own, which does not hold up the end of the server. What broke off goes on the next time.

    running: by name. failures: why the last fetch of a name ended without its model, in words.
    """

    def __init__(self, residents: Residents) -> None:
        self.running: dict[str, Progress] = {}
        self.failures: dict[str, str] = {}
        self._residents = residents
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str, fetch: Callable[[Watch], Offer]) -> asyncio.Task[None]:
        """The fetch of a model, maybe one that runs already. It raises what ``fetch`` raises. Do not cancel it."""
        self.failures.pop(name, None)
        if (task := self._tasks.get(name)) is None:
            progress = self.running[name] = Progress()
            task = self._tasks[name] = asyncio.ensure_future(self._offer(lambda: fetch(progress)))
            task.add_done_callback(lambda done: self._end(name, done))
        self.running[name].is_pausing = False
        return task

    def pause(self, name: str) -> None:
        """End a fetch, if it runs. What is there stays."""
        if name in self.running:
            self.running[name].is_pausing = True

    async def _offer(self, fetch: Callable[[], Offer]) -> None:
        self._residents.add(await asyncio.wrap_future(_beside(fetch)))

    def _end(self, name: str, task: asyncio.Task[None]) -> None:
        del self._tasks[name], self.running[name]
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, Paused):
            self.failures[name] = without_folders(str(error))
            stderr.write(f"edgespec: {name} cannot be fetched: {printable(str(error))}\n")


def _beside(work: Callable[[], Offer]) -> Future[Offer]:
    future: Future[Offer] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=f"{PREFIX}fetch", daemon=True).start()
    return future
