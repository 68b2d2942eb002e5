"""Serving at an address, until a signal or a word, with a stop that lets answers end."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgespec.server import stderr
from edgespec.server.address import BACKLOG, Address
from edgespec.server.service import Service

GRACE_S = 5.0
"""for answers that are on their way when the server is told to stop"""
HEAD_S = 30.0
"""for the head of a request to come, from the connection or the first byte on"""
_KEEP_CONNECTION_S = 75
"""between two requests of a connection"""
_CLOSE_S = 2


class Listener:
    """An application at an address. begin: run once the server answers; if it fails, so does ``run``."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        address: Address,
        *,
        grace_s: float = GRACE_S,
        begin: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._service, self._address, self._grace_s, self._begin = service, address, grace_s, begin
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Connection,
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,  # it would have to be kept up to date
                headers=[("server", "edgespec")],
                backlog=BACKLOG,
                timeout_keep_alive=_KEEP_CONNECTION_S,
                timeout_graceful_shutdown=_CLOSE_S,
                ws="none",
            )
        )
        self._server.before_shutdown = self._stop_service

    async def run(self) -> None:
        """Serve until ``stop``, or a signal."""
        beginning = asyncio.ensure_future(self._begin_or_stop())
        try:
            await self._server.serve(sockets=[self._address.socket])
        finally:
            self._address.close()
            beginning.cancel()
            with suppress(asyncio.CancelledError):
                await beginning

    def stop(self) -> None:
        """From any thread."""
        self._server.leave()

    async def _begin_or_stop(self) -> None:
        try:
            if self._begin is not None:
                await self._begin()
        except BaseException as error:
            if isinstance(error, Exception) and self._server.should_exit:
                return  # whoever stops the server while its models load ends their loads, too
            self.stop()
            raise

    async def _stop_service(self) -> None:
        await self._service.stop(self._grace_s)


class _Connection(H11Protocol):
    """Ends where no request comes: uvicorn itself waits for good for a first one, and for the rest of any. So whoever
    reaches the address could take all connections of this process, without a key. Bodies: see ``wire.read_body``."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _expect_request(self) -> None:
        """Time runs while no request is being answered. More bytes give no more time."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_S, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


class _Server(uvicorn.Server):
    """Lets the service end its answers before connections are closed."""

    before_shutdown: Callable[[], Awaitable[None]]
    _told: asyncio.Event | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Sleeps until it is told to leave: uvicorn's own looks ten times a second."""
        self._told, self._loop = asyncio.Event(), asyncio.get_running_loop()
        await self.on_tick(0)  # sets the headers of every answer
        if not self.should_exit:
            await self._told.wait()

    def leave(self) -> None:
        """From any thread."""
        self.should_exit = True
        if self._loop is not None and self._told is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._told.set)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self.leave()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's own, it does not raise the signal again: a stop that was asked for is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = ("SIGINT", "SIGTERM", "SIGBREAK")
        known = [getattr(signal, name) for name in names if hasattr(signal, name)]
        before = {each: signal.signal(each, self.handle_exit) for each in known}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stderr.write("edgespec: stopping\n")
        for server in self.servers:
            server.close()  # takes no new connections; those that are open get their answers
        stopping = asyncio.ensure_future(self.before_shutdown())
        while not stopping.done() and not self.force_exit:
            await asyncio.wait({stopping}, timeout=0.1)
        await super().shutdown(sockets)
