"""What Ollama's clients ask about models: which there are, what they can do, and to fetch one."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator
from datetime import datetime, timezone
from typing import Annotated, Any

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.routing import Route

from edgespec.pipeline import Pipeline
from edgespec.server import wire
from edgespec.server.about import of_loaded
from edgespec.server.fields import described, read
from edgespec.server.refusals import BadRequest, NoModel, NotOffered, Refusal, refusal
from edgespec.server.residents import Offer
from edgespec.server.service import Service
from edgespec.server.wire import Endpoint, Json, Streamed, line
from edgespec.text import reasoning, tool_calls

VERSION = "0.18.3"
"""of the Ollama whose routes these are; editors refuse an older one, or anything that is no number"""
_ARCHITECTURE = "edgespec"
_PARAMETERS = re.compile(r"(?<![a-z0-9.])\d+(\.\d+)?[bm](?![a-z0-9])", re.IGNORECASE)
"""smollm2-135m, Qwen2.5-Coder-1.5B-Instruct"""
_TELL_S = 1.0
"""between two lines on how far a download is"""
NOT_OFFERED = ("create", "copy", "push", "embed", "embeddings", "blobs/{digest}")


class NameRequest(msgspec.Struct, kw_only=True):
    """``name`` is the older spelling."""

    model: Annotated[str | None, described(minLength=1)] = None
    name: Annotated[str | None, described(minLength=1)] = None
    stream: bool = True

    @property
    def asked(self) -> str:
        if not (name := self.model or self.name):
            raise BadRequest("model is required", param="model")
        return name


def routes(service: Service) -> list[Route]:
    handlers = Models(service)
    posts = {"show": handlers.show, "pull": handlers.pull, **dict.fromkeys(NOT_OFFERED, wire.not_offered)}
    gets = {"version": handlers.version, "tags": handlers.tags, "ps": handlers.ps}
    return [
        *[Route(f"/api/{name}", Endpoint(each, shape_error), methods=["POST"]) for name, each in posts.items()],
        *[Route(f"/api/{name}", Endpoint(each, shape_error), methods=["GET"]) for name, each in gets.items()],
        Route("/api/delete", Endpoint(handlers.delete, shape_error), methods=["DELETE"]),
        Route("/", Endpoint(handlers.root, shape_error), methods=["GET"]),
    ]


def shape_error(why: Refusal) -> dict[str, Any]:
    return {"error": why.message}


class Models:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def root(self, http: HTTPRequest, body: bytes) -> Json:
        return Json(b"edgespec is running", media_type="text/plain")

    async def version(self, http: HTTPRequest, body: bytes) -> Json:
        return Json({"version": VERSION})

    async def tags(self, http: HTTPRequest, body: bytes) -> Json:
        return Json({"models": [self._tag(offer) for offer in self._service.residents.offers.values()]})

    async def ps(self, http: HTTPRequest, body: bytes) -> Json:
        models = []
        for each in self._service.residents.loaded.values():
            until = datetime.fromtimestamp(each.expires_at, timezone.utc) if each.expires_at else _NEVER
            models.append(self._tag(each.offer) | {"size": each.bytes, "size_vram": 0, "expires_at": time_text(until)})
        return Json({"models": models})

    async def show(self, http: HTTPRequest, body: bytes) -> Json:
        """Pickers ask it of every model: one that is here is not loaded for it."""
        offer = self._service.residents.find(read(body, NameRequest).asked)
        resident = self._service.residents.loaded.get(offer.name)
        pipeline = resident.pipeline if resident else None
        about = of_loaded(pipeline) if pipeline else await asyncio.to_thread(offer.about)
        if about is None:
            pipeline = await self._loaded(offer)
            about = of_loaded(pipeline)
        source, length = about.template, about.context_length
        has = {"tools": tool_calls.is_known_to(source), "insert": about.fills}
        has["thinking"] = reasoning.is_known_to(source)
        capabilities = ["completion", *(name for name, holds in has.items() if holds)]
        ends = "".join(f"\nstop {msgspec.json.encode(end).decode()}" for end in about.ends)
        return Json(
            {
                "modelfile": f"FROM {offer.name}",
                "parameters": f"num_ctx {length}{ends}",
                "template": "{{ .Prompt }}{{ .Suffix }}" if about.fills else "{{ .Prompt }}",
                "details": _details(offer.name, pipeline, about.precision),
                "model_info": {
                    "general.architecture": _ARCHITECTURE,
                    "general.basename": offer.name,
                    f"{_ARCHITECTURE}.context_length": length,
                    f"{_ARCHITECTURE}.vocab_size": about.vocab_size,
                },
                "capabilities": capabilities,
                "modified_at": _created(offer),
            }
        )

    async def _loaded(self, offer: Offer) -> Pipeline:
        resident = await self._service.residents.take(offer.name, None)
        try:
            return resident.worker.ready.result()
        finally:
            self._service.residents.give_back(resident)

    async def pull(self, http: HTTPRequest, body: bytes) -> Json | Streamed:
        asked = read(body, NameRequest)
        name, residents = asked.asked, self._service.residents
        fetching: asyncio.Task[None] | None = None
        if not residents.has(name):
            if self._service.fetch is None:
                raise NoModel(f"model {name!r} not found", param="model")
            fetching = self._service.fetches.begin(name.removesuffix(":latest"), self._service.fetch(name))
        if not asked.stream:
            if fetching is not None:
                await asyncio.shield(fetching)
            return Json({"status": "success"})

        async def lines() -> AsyncGenerator[bytes, None]:
            yield line({"status": "pulling manifest"})
            if fetching is not None:
                while not fetching.done():
                    so_far = self._service.fetches.running[name.removesuffix(":latest")]
                    known = {"total": so_far.total, "completed": so_far.n} if so_far.total else {}
                    yield line({"status": f"pulling {name}", **known})
                    await asyncio.wait({fetching}, timeout=_TELL_S)
                try:
                    fetching.result()
                except Exception as error:
                    yield line(shape_error(refusal(error)))
                    return
            yield line({"status": "success"})

        return Streamed(lines(), wire.NDJSON)

    async def delete(self, http: HTTPRequest, body: bytes) -> Json:
        name = self._service.residents.find(read(body, NameRequest).asked).name
        raise NotOffered(f"this server removes no files: {name} stays in the folder that `edgespec models` names")

    def _tag(self, offer: Offer) -> dict[str, Any]:
        resident = self._service.residents.loaded.get(offer.name)
        digest = hashlib.sha256(offer.name.encode()).hexdigest()  # of the name: clients only compare it
        about = {"name": offer.name, "model": offer.name, "modified_at": _created(offer)}
        pipeline = resident.pipeline if resident else None
        details = _details(offer.name, pipeline, of_loaded(pipeline).precision if pipeline else "")
        return {**about, "size": offer.size_bytes, "digest": digest, "details": details}


def _details(name: str, pipeline: Pipeline | None, precision: str) -> dict[str, Any]:
    """name: it says how many parameters a model has. pipeline: of a loaded model; before, nobody knows which engine
    runs it."""
    size = _PARAMETERS.search(name)
    return {
        "parent_model": "",
        "format": pipeline.target.capabilities.backend if pipeline else "",
        "family": _ARCHITECTURE,
        "families": [_ARCHITECTURE],
        "parameter_size": size[0].upper() if size else "",
        "quantization_level": precision,
    }


_NEVER = datetime(2318, 1, 1, tzinfo=timezone.utc)


def _created(offer: Offer) -> str:
    return time_text(datetime.fromtimestamp(offer.created, timezone.utc))


def time_text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
