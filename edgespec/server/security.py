"""Who may ask: names of this machine, pages that are allowed, and the API key.

A web page can make a browser send requests to a server on the same machine. Its own name may point to 127.0.0.1 (DNS
rebinding), so the Host is checked. Or it may ask from its own origin, so the Origin is checked too.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgespec.errors import SettingError
from edgespec.server.refusals import Forbidden, Refusal, Unauthorized
from edgespec.server.wire import refused

_LOOPBACK_NAMES = ("localhost",)
_PAGE = "/"
_PAGE_FILES = (_PAGE, "/app.js", "/app.css")
"""without the key: a browser has none until the page asks for it, and they hold no secret"""
_CHATS = "/app/"
"""what the server's own page reads: a page that may ask for answers may not read the user's chats"""
SHUTDOWN_PATH = "/shutdown"
_OPEN_PATHS = ("/health", "/v1/health", SHUTDOWN_PATH)
"""without the key: who watches over a server has none, and a stop asks for a token of its own"""
_PREFLIGHT = ((b"access-control-allow-methods", b"GET, POST, DELETE"), (b"access-control-max-age", b"600"))
_WANTED = "access-control-request-headers"
"""what a page's request will send. Clients have headers of their own, such as x-stainless-os of OpenAI's."""


class Guard:
    """An ASGI application around another one.

    hosts: further names of this machine that requests may use. others_reach: other machines can, so any address in
    numbers may be one of this machine; a page that rebinds has a name. origins: of web pages that may ask.
    """

    def __init__(
        self,
        app: ASGIApp,
        shape_error: Callable[[str], Callable[[Refusal], Any]],
        *,
        api_key: str | None = None,
        hosts: Collection[str] = (),
        others_reach: bool = False,
        origins: Collection[str] = (),
    ) -> None:
        self._app, self._shape_error = app, shape_error
        self._key = api_key
        self._hosts, self._others_reach = frozenset(host.lower() for host in hosts), others_reach
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin = headers.get("origin", "")
            is_allowed = origin.lower() in self._origins
            if is_allowed:  # refusals too: the page shows what they say
                send = _allowing(origin, send)
            if why := self._refusal(scope, headers):
                await refused(why, self._shape_error(scope["path"])).send(send)
                return
            if is_allowed and scope["method"] == "OPTIONS":
                wanted = (b"access-control-allow-headers", headers.get(_WANTED, "").encode("latin-1"))
                await send({"type": "http.response.start", "status": 204, "headers": [*_PREFLIGHT, wanted]})
                await send({"type": "http.response.body", "body": b""})
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Refusal | None:
        over_network = bool(scope.get("server")) and scope["server"][1] is not None  # else a socket of the file system
        if over_network and not self._is_own_host(headers.get("host", "")):
            return Forbidden("the Host of this request is not this machine; see --allow-host")
        origin = headers.get("origin")
        if origin is None:
            is_foreign = _is_sent_by_another_page(scope, headers)
        elif origin.lower() in self._origins:
            is_foreign = scope["path"].startswith(_CHATS)
        else:
            is_foreign = not self._is_own_origin(origin, headers.get("host", ""))
        if is_foreign:
            return Forbidden("web pages of other origins may not use this server; see --allow-origin")
        is_preflight = scope["method"] == "OPTIONS" and origin is not None  # browsers send no key with it
        if (
            self._key is not None
            and not is_preflight
            and scope["path"] not in (*_OPEN_PATHS, *_PAGE_FILES)
            and not self._has_key(headers)
        ):
            return Unauthorized("wrong or missing API key; send it as: Authorization: Bearer KEY")
        return None

    def _is_own_host(self, host: str) -> bool:
        name = _name_of(host)
        if name is None:
            return False
        return name in self._hosts or is_loopback(name) or (self._others_reach and _is_address(name))

    def _is_own_origin(self, origin: str, host: str) -> bool:
        try:
            split = urlsplit(origin.lower())
        except ValueError:
            return False
        return split.scheme in ("http", "https") and split.netloc == host.lower() and self._is_own_host(host)

    def _has_key(self, headers: Headers) -> bool:
        assert self._key is not None
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        return same_secret(given, self._key)


def _is_sent_by_another_page(scope: Scope, headers: Headers) -> bool:
    """A request that shows no Origin, such as that of a picture: its page cannot read the answer, but a model would be
    loaded. Browsers mark it. A link to the chat page is let through."""
    if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return False
    is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return not (is_link and scope["path"] == _PAGE)


def _allowing(origin: str, send: Send) -> Send:
    """Adds the header that lets a page of this origin read the answer."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            allowed = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
            message = {**message, "headers": [*message.get("headers", ()), *allowed]}
        await send(message)

    return sending


def same_secret(given: str, secret: str) -> bool:
    """Takes as long for a text that differs early as for one that differs late."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), secret.encode())


def is_loopback(host: str) -> bool:
    """
    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host.lower() in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def require_safe(host: str, api_key: str | None, insecure: bool) -> None:
    """Raises SettingError for an address that others can reach, without a key."""
    if api_key is not None and (len(api_key) < _LEAST_KEY or not api_key.isascii() or not api_key.isprintable()):
        raise SettingError(
            "API key", got=f"{len(api_key)} characters", allowed=f"{_LEAST_KEY} or more, of ASCII", setting="api_key"
        )
    if not is_loopback(host) and api_key is None and not insecure:
        raise SettingError(
            f"other machines can reach {host}",
            hint="give an --api-key (or EDGESPEC_API_KEY), or --insecure where you trust all of them",
            setting="host",
        )


_LEAST_KEY = 8


def _name_of(host: str) -> str | None:
    """The name in a Host header, without its port; None if it is malformed."""
    try:
        split = urlsplit(f"//{host}")
        _ = split.port
        return split.hostname if not (split.username or split.path or split.query) else None
    except ValueError:
        return None
