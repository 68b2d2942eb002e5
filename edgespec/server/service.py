"""What the wire formats ask for an answer: it finds the model, prepares the prompt, and hands chunks over from the
model's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

from edgespec.generation import Generation
from edgespec.hub.progress import Watch
from edgespec.pipeline import Pipeline
from edgespec.server.fetches import Fetches
from edgespec.server.places import Places
from edgespec.server.prepare import Prepared, prepare
from edgespec.server.refusals import Failed, Gone, Refusal, TooLong, Unavailable, refusal
from edgespec.server.residents import Offer, Resident, Residents
from edgespec.server.schema import Chunk, Request
from edgespec.server.worker import Job


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A request that ended, for metrics and the terminal.

    why: there is no result. total_s: since it was queued. first_s: until the first text, if one came. plain_s: expected
    time per token without drafts, if costs were measured.
    """

    model: str
    request: Request
    result: Generation | None
    why: Refusal | None
    total_s: float
    first_s: float | None
    plain_s: float | None


class Answer(AsyncIterator[Chunk]):
    """Chunks of one answer. Iterating raises Refusal where it ends too early. Close it in any case."""

    def __init__(self, service: Service, resident: Resident, pipeline: Pipeline, job: Job) -> None:
        self.model = resident.offer.name
        self.pipeline = pipeline
        self.request = job.request
        self.prepared: Prepared = job.prepared
        self._service, self._resident, self._job = service, resident, job
        self._chunks: asyncio.Queue[Chunk | BaseException | None] = asyncio.Queue()
        self.result: Generation | None = None
        self.total_s = 0.0
        """since it was queued, when it has ended"""
        self._over = False
        self._first_s: float | None = None

    def put(self, chunk: Chunk | BaseException) -> None:
        """The model is free again at the last chunk, however slowly the client reads."""
        self._chunks.put_nowait(chunk)
        if isinstance(chunk, BaseException):
            self._end(None, refusal(chunk))
            return
        if chunk.text and self._first_s is None:
            self._first_s = perf_counter() - self._job.queued_s
        if chunk.result is not None:
            self._end(chunk.result, None, chunk.plain_s)

    def wake(self) -> None:
        """Have ``chunk_or_woken`` return without a chunk."""
        if not self._over:
            self._chunks.put_nowait(None)

    async def chunk_or_woken(self) -> Chunk | None:
        """The next chunk; None: ``wake`` was called."""
        if self._over and self._chunks.empty():
            raise StopAsyncIteration
        chunk = await self._chunks.get()
        if isinstance(chunk, BaseException):
            raise refusal(chunk) from chunk
        return chunk

    async def __anext__(self) -> Chunk:
        while (chunk := await self.chunk_or_woken()) is None:
            pass
        return chunk

    async def whole(self) -> Generation:
        """The finished generation, if nobody reads along."""
        async for chunk in self:
            if chunk.result is not None:
                return chunk.result
        raise Failed("the answer has no end")

    def close(self, why: Refusal | None = None) -> None:
        """Nobody reads on: the engine stops at the next round."""
        if not self._over:
            why = why or Gone("the client is gone")
            self._resident.worker.end(self._job, why)
            self._end(None, why)

    def _end(self, result: Generation | None, why: Refusal | None, plain_s: float | None = None) -> None:
        if self._over:
            return
        self._over = True
        self.result, self.total_s = result, perf_counter() - self._job.queued_s
        self._service.ended(
            self._resident,
            Ended(
                model=self.model,
                request=self._job.request,
                result=result,
                why=why,
                total_s=self.total_s,
                first_s=self._first_s,
                plain_s=plain_s,
            ),
        )


class Service:
    """listeners: told of each request that ended. time_limit_s: of one answer, which is cut short there. longest_queue:
    requests that may wait for one model."""

    def __init__(self, residents: Residents, *, time_limit_s: float = 600.0, longest_queue: int = 64) -> None:
        self.residents = residents
        self.longest_queue = longest_queue
        self._places = Places(longest_queue)
        self.listeners: list[Callable[[Ended], None]] = []
        self.time_limit_s = time_limit_s
        self.fetches = Fetches(residents)
        self.fetch: Callable[..., Callable[[Watch], Offer]] | None = None
        """for a name that may be fetched: what fetches it, see ``offers.fetcher``"""
        self.stopping: Refusal | None = None
        self.is_ready = True
        """whether the models are loaded that the server begins with"""
        self._preparing = ThreadPoolExecutor(1, "edgespec-prompts")

    async def answer(self, request: Request) -> Answer:
        """Begin an answer. Whatever is wrong with the request is raised here: Refusal."""
        if self.stopping is not None:
            raise self.stopping
        name = self.residents.find(request.model).name
        self._enter(name, request)
        try:
            resident = await self.residents.take(name, request.kind)
        except BaseException:
            self._places.leave(name)
            raise
        try:
            return await self._begin(request, resident)
        except BaseException as error:
            self._give_back(resident, request)
            if isinstance(error, Exception):
                why = refusal(error)
                if isinstance(why, TooLong):
                    why.param = request.prompt_field
                raise why from error
            raise

    def _enter(self, name: str, request: Request) -> None:
        """At once: a request that waits for its model to load, or for the thread that prepares prompts, has a place,
        too. Raises Busy."""
        if (resident := self.residents.loaded.get(name)) is None:
            self._places.enter(name)
            return
        worker = resident.worker
        ending = len(worker.same(request)) if request.writes else 0
        self._places.enter(name, ending=ending, usual_s=worker.usual_s, is_in=request.follows)

    def _give_back(self, resident: Resident, request: Request) -> None:
        self.residents.give_back(resident, request.keep_alive_s, request.kind)
        self._places.leave(resident.offer.name)

    async def _begin(self, request: Request, resident: Resident) -> Answer:
        loop = asyncio.get_running_loop()
        pipeline = resident.worker.ready.result()
        prepared = await loop.run_in_executor(self._preparing, prepare, request, pipeline)

        def emit(chunk: Chunk | BaseException) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(answer.put, chunk)

        job = Job(request, prepared, emit, time_limit_s=self.time_limit_s)
        answer = Answer(self, resident, pipeline, job)
        resident.worker.submit(job)
        # Behind this turn of the loop, which also sends the head of a stream. The model's thread takes Python's lock
        # for milliseconds at a time, and the head would wait for it.
        loop.call_soon(resident.worker.wake)
        return answer

    def ended(self, resident: Resident, ended: Ended) -> None:
        """Listeners hear of it behind who reads the answer: the client does not wait for counts and a line."""
        self._give_back(resident, ended.request)
        for tell in self.listeners:
            asyncio.get_running_loop().call_soon(tell, ended)

    async def begin(self, names: Sequence[str]) -> None:
        """Load the models that the server begins with. Raises Refusal."""
        self.is_ready = False
        for name in names:
            self.residents.give_back(await self.residents.take(name, "chat"))
        self.is_ready = True

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, let those that run go on for a while, then end them."""
        self.stopping = self.stopping or Unavailable("the server is stopping")
        until = perf_counter() + grace_s
        for each in self.residents.loaded.values():
            each.worker.end_waiting(self.stopping)
        while perf_counter() < until and any(each.users for each in self.residents.loaded.values()):
            await asyncio.sleep(0.05)
        await self.residents.close(self.stopping)
        self._preparing.shutdown(wait=False, cancel_futures=True)
