"""What the wire formats do alike over HTTP: read a body, send JSON or a stream, and stop when the client is gone.

JSON has no spaces between its parts: llama.vim reads answers by a pattern.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.types import Message, Receive, Scope, Send

from edgespec.server.refusals import NotOffered, Refusal, Replaced, Slow, TooLarge
from edgespec.server.stderr import reported

if TYPE_CHECKING:
    from edgespec.server.schema import Chunk
    from edgespec.server.service import Answer

MOST_BODY = 16 << 20
"""bytes. The longest context, in bytes of text, with room for escapes."""
_DROPPED = 4
"""times the size that is allowed: of a body beyond it, no more is read"""
BODY_S = 30.0
"""for a body to come; a client that sends none would hold its connection for good"""
PING_S = 5.0
"""between signs of life in a stream: proxies and clients give up on a silent one"""

SSE, NDJSON = "text/event-stream", "application/x-ndjson"


@dataclass
class Json:
    """An answer in one piece. content: what msgspec writes, or bytes as they are."""

    content: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str = "application/json"

    async def send(self, send: Send) -> None:
        body = self.content if isinstance(self.content, bytes) else msgspec.json.encode(self.content)
        await send(
            _start(self.status, {"content-length": str(len(body)), "content-type": self.media_type, **self.headers})
        )
        await send({"type": "http.response.body", "body": body})


@dataclass
class Streamed:
    """An answer in pieces, sent as they come.

    close: called at the end. ``pieces`` cannot do it where the client is gone before the first of them is asked for:
    Python runs no line of a generator that never began.
    """

    pieces: AsyncGenerator[bytes, None]
    media_type: str
    close: Callable[[], None] = lambda: None

    async def send(self, send: Send) -> None:
        headers = {"content-type": self.media_type, "cache-control": "no-store", "x-accel-buffering": "no"}
        try:
            await send(_start(200, headers))
            async with aclosing(self.pieces) as pieces:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.close()


Handle = Callable[[HTTPRequest, bytes], Awaitable["Json | Streamed"]]
ShapeError = Callable[[Refusal], Any]


class Endpoint:
    """An ASGI application of one route. shape_error: the body of a refusal, as the clients of this route expect it."""

    def __init__(self, handle: Handle, shape_error: ShapeError, *, most_body: int | None = None) -> None:
        self._handle, self._shape_error, self._most_body = handle, shape_error, most_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HTTPRequest(scope)
        try:
            body = await read_body(receive, self._most_body or MOST_BODY, request.headers.get("content-length"))
        except _Gone:
            return
        except Refusal as found:
            await refused(found, self._shape_error).send(send)
            return
        with _Cut() as cut:

            def left(gone: asyncio.Task[None]) -> None:
                if not gone.cancelled():
                    gone.exception()  # or asyncio would tell of it
                    cut.make()

            gone = asyncio.ensure_future(_until_gone(receive))
            gone.add_done_callback(left)
            try:
                await self._respond(request, body, send)
            finally:
                gone.cancel()

    async def _respond(self, request: HTTPRequest, body: bytes, send: Send) -> None:
        try:
            answer = await self._handle(request, body)
        except Exception as error:
            answer = refused(reported(error), self._shape_error)
        await answer.send(send)


class _Gone(Exception):
    """The client closed the connection."""


class _Cut:
    """A block that ``make`` ends where it waits, without an error. It spares a task for the block, and the turns of the
    loop that such a task takes. Callbacks of the loop may call ``make``, also when the block has ended."""

    def __init__(self) -> None:
        self.is_made = self._is_over = False

    def __enter__(self) -> _Cut:
        self._task = asyncio.current_task()
        self._asked = _cancellations(self._task)
        return self

    def make(self) -> None:
        if not (self._is_over or self.is_made):
            self.is_made = True
            assert self._task is not None
            self._task.cancel()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        self._is_over = True
        if not self.is_made:
            return False
        assert self._task is not None
        if sys.version_info >= (3, 11):
            self._task.uncancel()
        if isinstance(error, asyncio.CancelledError):
            return _cancellations(self._task) <= self._asked  # else somebody else wants an end, too
        return isinstance(error, Exception)


def _cancellations(task: asyncio.Task[Any] | None) -> int:
    """Wanted of a task. Python 3.10 does not count them."""
    if sys.version_info < (3, 11) or task is None:
        return 0
    return task.cancelling()


def refused(why: Refusal, shape_error: ShapeError) -> Json:
    headers = {} if why.retry_after_s is None else {"retry-after": str(math.ceil(why.retry_after_s))}
    if isinstance(why, Replaced):  # OpenAI's clients ask again after a 409, and would end the request that is newer
        headers["x-should-retry"] = "false"
    return Json(shape_error(why), why.status, headers)


async def read_body(receive: Receive, most: int, announced: str | None = None) -> bytes:
    """Raises TooLarge, Slow. announced: how many bytes the client says that it sends.

    The rest of a body that is too large is read and dropped: a client that still sends reads no answer.
    """
    parts: list[bytes] = []
    size, is_kept = 0, not (announced or "").isdecimal() or float(announced or 0) <= most

    async def read() -> None:
        nonlocal size
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            part = message.get("body", b"")
            size += len(part)
            if is_kept and size <= most:
                parts.append(part)
            else:
                parts.clear()
            if not message.get("more_body") or size > _DROPPED * most:
                return

    with _Cut() as late:
        timer = asyncio.get_running_loop().call_later(BODY_S, late.make)
        try:
            await read()
        finally:
            timer.cancel()
    if late.is_made:
        raise Slow(f"the body did not come within {BODY_S:g} seconds")
    if not is_kept or size > most:
        raise TooLarge(f"the body is too large; allowed: {most >> 20} MiB")
    return b"".join(parts)


async def pinged(answer: Answer, every_s: float = PING_S) -> AsyncGenerator[Chunk | None, None]:
    """The chunks of an answer, and None whenever none came for a while."""
    loop = asyncio.get_running_loop()
    while True:
        timer = loop.call_later(every_s, answer.wake)
        try:
            chunk = await answer.chunk_or_woken()
        except StopAsyncIteration:
            return
        finally:
            timer.cancel()
        yield chunk


def client_of(http: HTTPRequest) -> str:
    """Who asks, as far as a request shows it: its address, API key and program. Two editors on one machine have the
    same address, and maybe no key."""
    headers = http.headers
    key = headers.get("authorization") or headers.get("x-api-key", "")
    return "\n".join((http.client.host if http.client else "", headers.get("user-agent", ""), key))


def event(content: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + (content if isinstance(content, bytes) else msgspec.json.encode(content)) + b"\n\n"


PING, DONE = b": ping\n\n", event(b"[DONE]")


def line(content: Any) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(content) + b"\n"


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, headers: dict[str, str]) -> Message:
    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": named}


async def not_offered(http: HTTPRequest, body: bytes) -> Json:
    """The answer of a route that clients may look for, and that has none."""
    what = "is not supported: this server writes texts, and makes no embeddings, rankings or models"
    raise NotOffered(f"{http.scope['path']} {what}")
