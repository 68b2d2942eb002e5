"""The application: all routes, behind the guard. A wire format adds its own routes; nothing else knows it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from edgespec.server import llama_cpp, llama_cpp_answers, ollama, ollama_models, openai, openai_shapes
from edgespec.server.metrics import CONTENT_TYPE, Metrics
from edgespec.server.refusals import NoRoute, Refusal, Unauthorized, Unavailable, WrongMethod
from edgespec.server.security import SHUTDOWN_PATH, Guard, same_secret
from edgespec.server.service import Service
from edgespec.server.wire import Endpoint, Json, ShapeError, refused


@dataclass(frozen=True)
class Shutdown:
    """token: what ``POST /shutdown`` asks for. stop: begins a graceful stop."""

    token: str
    stop: Callable[[], None]


def application(
    service: Service,
    *,
    api_key: str | None = None,
    hosts: Collection[str] = (),
    others_reach: bool = False,
    origins: Collection[str] = (),
    shutdown: Shutdown | None = None,
    more: Sequence[BaseRoute] = (),
) -> ASGIApp:
    """The server without its socket. more: further routes, such as those of a page."""
    app = Starlette(routes=[*more, *routes_of(service, shutdown)], exception_handlers={HTTPException: _not_routed})
    return Guard(app, shape_of, api_key=api_key, hosts=hosts, others_reach=others_reach, origins=origins)


def routes_of(service: Service, shutdown: Shutdown | None = None) -> list[Route]:
    """All routes of the server's own."""
    metrics = Metrics(service.residents)
    service.listeners.append(metrics.ended)
    formats = [*openai.routes(service), *ollama.routes(service), *llama_cpp.routes(service)]
    return [*formats, *_own(service, metrics, shutdown)]


def shape_of(path: str) -> ShapeError:
    """How errors look to who asks for this path."""
    if path.startswith("/api/"):
        return ollama_models.shape_error
    return llama_cpp_answers.shape_error if path.startswith(llama_cpp.PATHS) else openai_shapes.shape_error


def _own(service: Service, metrics: Metrics, shutdown: Shutdown | None) -> list[Route]:
    async def health(http: HTTPRequest, body: bytes) -> Json:
        if service.stopping is not None:
            return refused(service.stopping, _shape_health)
        if not service.is_ready:
            return refused(Unavailable("Loading model", retry_after_s=1.0), _shape_health)
        return Json({"status": "ok"})

    async def numbers(http: HTTPRequest, body: bytes) -> Json:
        return Json(metrics.text(), media_type=CONTENT_TYPE)

    async def stop(http: HTTPRequest, body: bytes) -> Json:
        token = http.headers.get("authorization", "").removeprefix("Bearer ")
        if shutdown is None or not same_secret(token, shutdown.token):
            raise Unauthorized("wrong or missing token; it is in server.json of the user's data folder")
        shutdown.stop()
        return Json({"status": "stopping"})

    return [
        *[
            Route(path, Endpoint(health, openai_shapes.shape_error), methods=["GET"])
            for path in ("/health", "/v1/health")
        ],
        Route("/metrics", Endpoint(numbers, openai_shapes.shape_error), methods=["GET"]),
        Route(SHUTDOWN_PATH, Endpoint(stop, openai_shapes.shape_error), methods=["POST"]),
    ]


def _shape_health(why: Refusal) -> dict[str, Any]:
    """As llama.cpp's server says it; editors wait for it."""
    return {"error": {"code": why.status, "message": why.message, "type": why.kind}}


async def _not_routed(request: HTTPRequest, error: Exception) -> Response:
    status = cast(HTTPException, error).status_code
    path = request.scope["path"]  # ``url`` holds the Host, which may be anything
    why: Refusal = NoRoute(f"no route {request.method} {path}")
    if status == WrongMethod.status:
        why = WrongMethod(f"{path} does not take {request.method}")
    found = refused(why, shape_of(path))
    headers = dict(cast(HTTPException, error).headers or {})
    return Response(msgspec.json.encode(found.content), found.status, headers, found.media_type)
