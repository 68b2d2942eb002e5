"""One thread a loaded model: requests in turn, each ended at the next round once nobody wants it.

The thread loads the model, so that a server stays responsive meanwhile. It waits without a clock: an idle server takes
no time of the CPU.
"""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from time import perf_counter
from typing import TypeVar

from edgespec.errors import EdgespecError
from edgespec.pipeline import Pipeline
from edgespec.process_end import PREFIX
from edgespec.server.prepare import Prepared
from edgespec.server.refusals import Refusal, Replaced, Unavailable
from edgespec.server.schema import Chunk, Kind, Request
from edgespec.server.sequences import Sequences
from edgespec.server.stderr import report

T = TypeVar("T")
Emit = Callable[[Chunk | BaseException], None]
"""Called on the worker's thread: chunks, the last with a result, or an error that ends the answer."""

_LEAST_RETRY_S = 1.0
_CLIENTS = 64
"""whose last prompt is known"""
_REPLACED = "a newer request of this client took the place of this one"


class Job:
    """A request on its way. ``ended``: why nobody wants the rest, if so; the answer then ends with that refusal."""

    def __init__(self, request: Request, prepared: Prepared, emit: Emit, *, time_limit_s: float | None = None) -> None:
        self.request, self.prepared, self.emit = request, prepared, emit
        limits = [limit for limit in (request.time_limit_s, time_limit_s) if limit is not None]
        self._time_limit_s = min(limits, default=None)
        self.ended: Refusal | None = None
        self.queued_s = perf_counter()
        self.began_s: float | None = None

    def is_over(self) -> bool:
        """Asked by the engine after each round."""
        if self.ended is not None:
            return True
        limit, began = self._time_limit_s, self.began_s
        return limit is not None and began is not None and perf_counter() - began > limit


class Worker:
    """load: makes the model, on this worker's thread."""

    def __init__(self, name: str, load: Callable[[], Pipeline], sequences: Sequences) -> None:
        self.name = name
        self.ready: Future[Pipeline] = Future()
        self.running: Job | None = None
        self.usual_s = 0.0
        """how long a request took, lately"""
        self.last: OrderedDict[str, tuple[Kind, Sequence[int]]] = OrderedDict()
        """kind and prompt of each client's last request; of this worker's thread"""
        self._load, self._sequences = load, sequences
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._calls: deque[Callable[[Pipeline], None]] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"{PREFIX}{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether its thread still holds memory."""
        return self._thread.is_alive()

    def same(self, request: Request) -> list[Job]:
        """Those on their way with the key of a request."""
        with self._changed:
            jobs = [*self._waiting, *([self.running] if self.running else [])]
        return [job for job in jobs if job.request.key == request.key is not None]

    def submit(self, job: Job) -> None:
        """Put a request at the end of the queue. If it asks for a text, older ones with its key end. A thread that
        rests begins with it at ``wake``. Raises Replaced, Unavailable."""
        with self._changed:
            if self._closed:
                raise Unavailable(f"{self.name} is being unloaded", retry_after_s=_LEAST_RETRY_S)
            same = self.same(job.request)
            if job.request.follows and any(other.request.writes for other in same):
                raise Replaced(_REPLACED)  # the other came behind an earlier answer to this request
            for other in same if job.request.writes else ():
                self._end(other, Replaced(_REPLACED))
            self._waiting.append(job)

    def wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def call(self, work: Callable[[Pipeline], T]) -> Future[T]:
        """Run something between two texts, on the model's thread. Raises Unavailable."""
        future: Future[T] = Future()

        def run(pipeline: Pipeline) -> None:
            if not future.set_running_or_notify_cancel():
                return  # who asked is gone
            try:
                future.set_result(work(pipeline))
            except BaseException as error:
                future.set_exception(error)

        with self._changed:
            if self._closed:
                raise Unavailable(f"{self.name} is being unloaded", retry_after_s=_LEAST_RETRY_S)
            self._calls.append(run)
            self._changed.notify()
        return future

    def end(self, job: Job, why: Refusal) -> None:
        """End a request: at once if it waits, at the next round if it runs."""
        with self._changed:
            self._end(job, why)

    def end_waiting(self, why: Refusal) -> None:
        with self._changed:
            for job in list(self._waiting):
                self._end(job, why)

    def close(self, why: Refusal) -> None:
        """End everything, and the thread. The model's memory is free once ``join`` returns."""
        with self._changed:
            self._closed = True
            for job in [*self._waiting, *([self.running] if self.running else [])]:
                self._end(job, why)
            self._changed.notify()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread. Returns whether it has ended."""
        self._thread.join(timeout_s)
        return not self.is_alive

    def _end(self, job: Job, why: Refusal) -> None:
        job.ended = job.ended or why
        if job in self._waiting:
            self._waiting.remove(job)
            job.emit(job.ended)

    def _run(self) -> None:
        try:
            pipeline = self._load()
        except BaseException as error:
            with self._changed:
                self._closed = True
            self.ready.set_exception(error)
            return
        self.ready.set_result(pipeline)
        while (job := self._next()) is not None:
            if not isinstance(job, Job):
                job(pipeline)
                continue
            last = self._answer(pipeline, job)
            with self._changed:
                self.running = None  # before anybody hears of its end, and asks for more
            job.emit(last)
            del job, last
        self._sequences.forget(pipeline)
        self.ready = Future()
        del pipeline
        gc.collect()  # the engine's memory, while someone waits for it

    def _next(self) -> Job | Callable[[Pipeline], None] | None:
        with self._changed:
            while not (self._waiting or self._calls or self._closed):
                self._changed.wait()
            if self._calls:
                return self._calls.popleft()
            if self._closed:
                return None
            self.running = self._waiting.popleft()
            return self.running

    def _answer(self, pipeline: Pipeline, job: Job) -> Chunk | BaseException:
        """Emit all chunks but the last, and return that one, or what went wrong."""
        job.began_s = perf_counter()
        try:
            last = self._write(pipeline, job)
        except BaseException as error:
            if not isinstance(error, EdgespecError):
                report(error)
            return error
        self.usual_s += 0.2 * (perf_counter() - job.began_s - self.usual_s)
        return job.ended or last

    def _write(self, pipeline: Pipeline, job: Job) -> Chunk:
        request, prepared = job.request, job.prepared
        self._sequences.bring(pipeline, prepared.tokens, request.kind)
        self.last[request.client] = request.kind, prepared.tokens
        self.last.move_to_end(request.client)
        while len(self.last) > _CLIENTS:
            self.last.popitem(last=False)
        if request.max_new_tokens == 0:
            return Chunk(result=pipeline.read(prepared.tokens, cancelled=job.is_over))

        def progress(done: int, total: int) -> None:
            job.emit(Chunk(read=(done, total)))

        stream = pipeline.stream_tokens(
            prepared.tokens,
            max_new_tokens=pipeline.target.cache.capacity if request.is_unlimited else request.max_new_tokens,
            sampling=request.sampling,
            stop=request.stop,
            ignore_eos=request.ignore_eos,
            response_format=prepared.response_format,
            num_draft_tokens=request.num_draft_tokens,
            progress=progress if request.shows_progress else None,
            cancelled=job.is_over,
            hole=prepared.hole,
            logprobs=request.logprobs,
        )
        result, seen, scored = stream.result, 0, 0
        for piece in stream:
            rounds, logprobs = tuple(result.stats.rounds[seen:]), tuple((result.logprobs or ())[scored:])
            seen, scored = seen + len(rounds), scored + len(logprobs)
            job.emit(Chunk(piece, rounds, logprobs))
        if result.finish_reason is None:  # at the time limit: the text is cut short, as at any other limit
            result.finish_reason = "length"
        plain_s = pipeline.expected_plain_s(result.stats)  # here: the event loop has other requests to serve
        return Chunk(rounds=tuple(result.stats.rounds[seen:]), result=result, plain_s=plain_s)
