"""One line a request, for who runs the server. It never shows a text, nor an address of a page."""

from __future__ import annotations

from time import perf_counter, strftime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgespec.errors import printable
from edgespec.server import stderr
from edgespec.server.service import Ended

_POLLED = ("/health", "/v1/health")
"""asked for again and again while a model loads"""
_LONGEST_PATH = 80
"""characters"""


def say(line: str) -> None:
    stderr.write(f"{strftime('%H:%M:%S')} {printable(line)}\n")


def ended(ended: Ended) -> None:
    """Of a request that reached a model."""
    head = f"{ended.model} {ended.request.kind}"
    if ended.result is None:
        say(f"{head}: {(ended.why and ended.why.code) or 'failed'} after {ended.total_s:.2f} s")
        return
    stats, tokens = ended.result.stats, len(ended.result.token_ids)
    parts = [f"{stats.prompt_tokens} tokens read ({stats.reused_tokens} held), {tokens} written"]
    if ended.first_s is not None:
        parts.append(f"first after {ended.first_s:.2f} s")
    if speed := ended.result.decode_tok_per_s:
        parts.append(f"{speed:.1f} tok/s")
    if stats.acceptance_rate is not None:
        parts.append(f"drafts accepted {stats.acceptance_rate:.0%}")
    say(f"{head}: {', '.join(parts)}, {ended.result.finish_reason}, {ended.total_s:.2f} s")


class RefusedLines:
    """An ASGI application around another one: a line for each request that gets an error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()

        async def watching(message: Message) -> None:
            refused = message["type"] == "http.response.start" and message["status"] >= 400
            if refused and scope["path"] not in _POLLED:
                path = scope["path"][:_LONGEST_PATH]
                say(f"{scope['method']} {path}: {message['status']} after {perf_counter() - began:.2f} s")
            await send(message)

        await self._app(scope, receive, watching)
