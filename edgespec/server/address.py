"""The address of a server, taken before a model is loaded. A second server on it gets an error at once."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

from edgespec.errors import SettingError
from edgespec.server.found import answers

BACKLOG = 256
"""connections that wait to be taken"""


class Address:
    """A listening socket and its URL. Raises SettingError if the address is not free.

    path: of a socket in the file system, instead of host and port.
    """

    def __init__(self, host: str, port: int, path: Path | None = None) -> None:
        self.path = path
        self.socket = _file_socket(path) if path else _port_socket(host, port)
        self._file = _file_of(path)
        self.url = f"unix:{path}" if path else f"http://{_in_url(host)}:{self.socket.getsockname()[1]}"

    @property
    def local_url(self) -> str:
        """For programs on this machine, also where the server listens on all its addresses."""
        return self.url.replace("http://0.0.0.0:", "http://127.0.0.1:").replace("http://[::]:", "http://[::1]:")

    def close(self) -> None:
        """Removes the file of the socket, but not one that another server has put there since."""
        self.socket.close()
        if self.path is not None and self._file is not None and _file_of(self.path) == self._file:
            self.path.unlink(missing_ok=True)


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
        sock.listen(BACKLOG)  # now: until then, the system would let a second server have the port, too
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
    other = (
        "an edgespec server is running there: use it, or stop it"
        if answers(f"http://{_in_url(host)}:{port}")
        else "stop what uses it"
    )
    return SettingError(f"port {port} is in use", hint=f"{other}; or give another --port", setting="port")


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
            sock.listen(BACKLOG)
        finally:
            os.umask(old)
    except OSError as error:
        sock.close()
        reason = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror or error
        raise SettingError(
            f"cannot listen on {path}: {reason}", hint="give another --socket", setting="socket"
        ) from error
    return sock


def _file_of(path: Path | None) -> tuple[int, int] | None:
    """Which file is there. A file system may give the number of one that was removed to the next."""
    try:
        status = path.lstat() if path else None
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns) if status else None


def _answers(family: Any, path: Path) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
