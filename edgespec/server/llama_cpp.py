"""The wire format of llama.cpp's own server, which editors speak: completion of holes and texts.

/infill fills the hole between ``input_prefix`` + ``prompt`` and ``input_suffix``. See ``text.infill``: the hole is
anchored at the start of the line where ``prompt`` begins. Without ``input_prefix``, or if ``prompt`` is too long, that
is the hole's own line.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.routing import Route

from edgespec.server import llama_cpp_models, several, wire
from edgespec.server.fields import described, read
from edgespec.server.llama_cpp_answers import GenerationRequest, Parts, only, shape_error, whole
from edgespec.server.logprobs import Alternatives, checked
from edgespec.server.refusals import BadRequest
from edgespec.server.schema import Infill, Request, Text, Tokens
from edgespec.server.service import Answer, Service
from edgespec.server.stderr import reported
from edgespec.server.wire import Endpoint, Json, Streamed, event
from edgespec.text.infill import DEFAULT_HOLE_TOKENS


class Extra(msgspec.Struct):
    """Text of another file. A client without names sends the text alone."""

    text: str
    filename: str | None = None


class InfillRequest(GenerationRequest, kw_only=True):
    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[Extra] | None = None
    prompt: str = ""
    filename: str | None = None


class CompletionRequest(GenerationRequest, kw_only=True):
    prompt: Annotated[str | list[int], described(minLength=1, minItems=1)]
    n_probs: Alternatives = None

    @property
    def alternatives(self) -> int | None:
        return checked(self.n_probs, "n_probs") if self.n_probs else None


def routes(service: Service) -> list[Route]:
    """Every route of this format but /health, which is everybody's."""
    handlers = LlamaCpp(service)
    posts: dict[str, wire.Handle] = {
        "/infill": handlers.infill,
        "/completion": handlers.completion,
        "/completions": handlers.completion,
        **dict.fromkeys(NOT_OFFERED, wire.not_offered),
    }
    writing = [Route(path, Endpoint(handle, shape_error), methods=["POST"]) for path, handle in posts.items()]
    return [*writing, *llama_cpp_models.routes(service)]


NOT_OFFERED = ("/embedding", "/embeddings", "/rerank", "/reranking")
PATHS = (
    *("/infill", "/completion", "/embedding", "/rerank", "/tokenize", "/detokenize", "/apply-template"),
    *("/slots", "/props"),
)
"""what its routes begin with"""


class LlamaCpp:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def infill(self, http: HTTPRequest, body: bytes) -> Json | Streamed:
        asked = read(body, InfillRequest)
        files = [(extra.filename or "", extra.text) for extra in asked.input_extra or ()]
        if not (asked.input_prefix or asked.input_suffix or asked.prompt or files):
            raise BadRequest("input_prefix, input_suffix and prompt are missing or empty", param="input_prefix")
        hole = Infill(
            asked.input_prefix,
            asked.input_suffix,
            files,
            asked.prompt,
            path=asked.filename,
            indent=max(asked.n_indent, 0),
            line_time_s=asked.limit_s,
        )
        request = asked.request(http, hole, "completion", asked.response_format, place=f"infill {asked.filename}")
        length = DEFAULT_HOLE_TOKENS if asked.length is None else asked.length
        return await self._respond(replace(request, max_new_tokens=length), asked)

    async def completion(self, http: HTTPRequest, body: bytes) -> Json | Streamed:
        asked = read(body, CompletionRequest)
        given = asked.prompt
        prompt: Text | Tokens
        if isinstance(given, str):
            prompt = Text(given)
        else:
            prompt = Tokens(given)
        request = asked.request(http, prompt, "completion", asked.response_format)
        return await self._respond(replace(request, time_limit_s=asked.limit_s), asked)

    async def _respond(self, request: Request, asked: GenerationRequest) -> Json | Streamed:
        count = several.checked(asked.n_cmpl, "n_cmpl")
        first = await self._service.answer(request)
        if asked.stream:
            return Streamed(self._events(first, request, asked, count), wire.SSE, first.close)
        found = []
        async with aclosing(several.answers(self._service, request, first, count)) as answers:
            async for index, answer in answers:
                made = whole(index, answer, asked, await answer.whole())
                found.append(made if asked.response_fields is None else only(made, asked.response_fields))
        return Json(found if count > 1 else found[0])

    async def _events(
        self, first: Answer, request: Request, asked: GenerationRequest, count: int
    ) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(several.answers(self._service, request, first, count)) as answers:
                async for index, answer in answers:
                    parts = Parts(index, answer, asked)
                    async with aclosing(wire.pinged(answer)) as chunks:
                        async for chunk in chunks:
                            for part in (None,) if chunk is None else parts.of(chunk):
                                yield wire.PING if part is None else event(part)
        except Exception as error:
            yield event(shape_error(reported(error)))
