"""The socket: one address, taken before a model is loaded, and a stop that lets answers end."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from edgespec.errors import SettingError
from edgespec.server.service import Service

NAME = "edgespec"
_BACKLOG = 256
_KEEP_CONNECTION_S = 75
_LOOK_S = 0.5
"""for a look at who has the port"""


class Listener:
    """An application on an address. The port is taken on construction: SettingError if it is not free.

    path: of a socket in the file system, instead of host and port. begin: run once the server listens; if it fails, so
    does ``run``.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        *,
        host: str,
        port: int,
        path: Path | None = None,
        grace_s: float = 5.0,
        begin: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._service, self._grace_s, self._begin = service, grace_s, begin
        self._path = path
        self._socket = _file_socket(path) if path else _port_socket(host, port)
        name = self._socket.getsockname()
        self.url = f"unix:{path}" if path else f"http://{_in_url(host)}:{name[1]}"
        self._server = _Server(
            uvicorn.Config(
                app,
                http="h11",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                headers=[("server", NAME)],
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_CONNECTION_S,
                timeout_graceful_shutdown=2,
                ws="none",
            )
        )
        self._server.before_shutdown = self._stop_service

    async def run(self) -> None:
        """Serve until ``stop``, or a signal."""
        beginning = asyncio.ensure_future(self._begin()) if self._begin else None
        if beginning:
            beginning.add_done_callback(lambda task: self.stop() if not task.cancelled() and task.exception() else None)
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            self._socket.close()
            if self._path:
                with suppress(OSError):
                    self._path.unlink()
            if beginning:
                beginning.cancel()
                with suppress(asyncio.CancelledError):
                    await beginning

    def stop(self) -> None:
        """From any thread."""
        self._server.should_exit = True

    async def _stop_service(self) -> None:
        await self._service.stop(self._grace_s)


class _Server(uvicorn.Server):
    """Lets the service end its answers before connections are closed."""

    before_shutdown: Callable[[], Awaitable[None]]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()  # takes no new connections; those that are open get their answers
        if not self.force_exit:
            stopping = asyncio.ensure_future(self.before_shutdown())
            while not stopping.done() and not self.force_exit:
                await asyncio.wait({stopping}, timeout=0.1)
        await super().shutdown(sockets)


def _port_socket(host: str, port: int) -> socket.socket:
    try:
        [(family, kind, proto, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SettingError(f"no such address: {host}", setting="host") from error
    sock = socket.socket(family, kind, proto)
    try:
        if os.name == "posix":  # on Windows it would let two servers share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif exclusive := getattr(socket, "SO_EXCLUSIVEADDRUSE", None):
            sock.setsockopt(socket.SOL_SOCKET, exclusive, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)  # now: until then, the system would let a second server have the port, too
    except (OSError, OverflowError) as error:
        sock.close()
        raise _not_free(host, port, error) from error
    return sock


def _not_free(host: str, port: int, error: Exception) -> SettingError:
    if getattr(error, "errno", None) not in (errno.EADDRINUSE, errno.EACCES):
        reason = getattr(error, "strerror", None) or error
        return SettingError(f"cannot listen on {host}:{port}: {reason}", setting="port")
    if getattr(error, "errno", None) == errno.EACCES and os.name == "posix":
        return SettingError(
            f"this user may not listen on port {port}", hint="give a --port from 1024 on", setting="port"
        )
    other = "an edgespec server is running there: use it, or stop it" if _is_ours(host, port) else "stop what uses it"
    return SettingError(f"port {port} is in use", hint=f"{other}; or give another --port", setting="port")


def _is_ours(host: str, port: int) -> bool:
    with suppress(OSError, ValueError):
        try:
            with urllib.request.urlopen(f"http://{_in_url(host)}:{port}/health", timeout=_LOOK_S) as answer:
                return bool(answer.headers.get("server") == NAME)
        except urllib.error.HTTPError as error:
            return error.headers.get("server") == NAME
    return False


def _file_socket(path: Path) -> socket.socket:
    family = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise SettingError("this system has no sockets in the file system", hint="use --port", setting="socket")
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _answers(family, path):
            path.unlink()  # of a server that was killed
        old = os.umask(0o077)
        try:
            sock.bind(str(path))
            sock.listen(_BACKLOG)
        finally:
            os.umask(old)
    except OSError as error:
        sock.close()
        reason = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror or error
        raise SettingError(
            f"cannot listen on {path}: {reason}", hint="give another --socket", setting="socket"
        ) from error
    return sock


def _answers(family: Any, path: Path) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
