"""Where a running server is, for programs of the same user that want to use or stop it.

The file ``server.json`` in the user's data folder names the last server that was started. It holds a token that stops
this server, so only the user may read it. This module imports nothing heavy: launchers use it.
"""

from __future__ import annotations

import json
import os
import secrets
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path

_LOOK_S = 1.0
_NOBODY = (OSError, ValueError, HTTPException)
"""of edgespec is there: another program may answer on that port, in words that are no HTTP"""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy that the system names would look for the server on its own machine, and read the token."""


@dataclass(frozen=True)
class Found:
    """url: http://HOST:PORT, or unix:PATH. token: what ``POST /shutdown`` asks for. parent: who started the process: in
    a virtual environment on Windows a launcher stands between."""

    url: str
    pid: int
    token: str
    parent: int = 0


def data_dir() -> Path:
    """EDGESPEC_DATA, or the user's data folder of this system."""
    if chosen := os.environ.get("EDGESPEC_DATA"):
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("edgespec", appauthor=False)


def record(url: str) -> Found:
    """Name this process as the server. Raises OSError."""
    found = Found(url, os.getpid(), secrets.token_urlsafe(24), os.getppid())
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{found.pid}")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(asdict(found), file)
    partial.replace(path)
    return found


def forget(found: Found) -> None:
    """At the end of a server. The file of a server that was started later stays."""
    if recorded() == found:
        with suppress(OSError):
            _path().unlink()


def recorded() -> Found | None:
    """What the file says; the server may be gone."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        fields = json.loads(_path().read_text(encoding="utf-8"))
        return Found(str(fields["url"]), int(fields["pid"]), str(fields["token"]), int(fields.get("parent", 0)))
    return None


def running() -> Found | None:
    """The recorded server, if it answers. One that still loads its models does."""
    found = recorded()
    if found is None or not found.url.startswith("http://"):
        return None
    return found if answers(found.url) else None


def answers(url: str) -> bool:
    """Whether a server of edgespec answers there."""
    try:
        with _DIRECT.open(f"{url}/health", timeout=_LOOK_S) as answer:
            return bool(answer.headers.get("server") == "edgespec")
    except urllib.error.HTTPError as error:
        return bool(error.headers.get("server") == "edgespec")
    except _NOBODY:
        return False


def shut_down(found: Found) -> bool:
    """Ask a server to stop. Answers that are on their way come to their end, within its time of grace."""
    request = urllib.request.Request(
        f"{found.url}/shutdown", method="POST", headers={"Authorization": f"Bearer {found.token}"}
    )
    try:
        with _DIRECT.open(request, timeout=_LOOK_S):
            return True
    except _NOBODY:
        return False


def _path() -> Path:
    return data_dir() / "server.json"
