"""OpenAI's wire format: models, chat completions, completions. Also under /v3, where OpenVINO's model server has it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.routing import Route

from edgespec.generation import Generation
from edgespec.server import several, wire
from edgespec.server.fields import read
from edgespec.server.messages import template_variables
from edgespec.server.openai_responses import Responses
from edgespec.server.openai_shapes import ChatRequest, ChatShape, CompletionRequest, Shape, TextShape, shape_error
from edgespec.server.refusals import BadRequest
from edgespec.server.schema import Chat, Infill, Request, Text, Tokens
from edgespec.server.service import Answer, Service
from edgespec.server.stderr import reported
from edgespec.server.wire import Endpoint, Json, Streamed, event
from edgespec.text.messages import plain_messages

PREFIXES = ("/v1", "/v3")
NOT_OFFERED = ("embeddings", "rerank", "reranking")


def routes(service: Service) -> list[Route]:
    """Every route of this format."""
    handlers, responses = OpenAI(service), Responses(service)
    found = []
    for prefix in PREFIXES:
        found += [
            Route(f"{prefix}/models", Endpoint(handlers.models, shape_error), methods=["GET"]),
            Route(f"{prefix}/models/{{name:path}}", Endpoint(handlers.model, shape_error), methods=["GET"]),
            Route(f"{prefix}/chat/completions", Endpoint(handlers.chat, shape_error), methods=["POST"]),
            Route(f"{prefix}/completions", Endpoint(handlers.completion, shape_error), methods=["POST"]),
            Route(f"{prefix}/responses", Endpoint(responses.respond, shape_error), methods=["POST"]),
            *(
                Route(f"{prefix}/{name}", Endpoint(wire.not_offered, shape_error), methods=["POST"])
                for name in NOT_OFFERED
            ),
        ]
    return found


class OpenAI:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, http: HTTPRequest, body: bytes) -> Json:
        return Json({"object": "list", "data": [self._model(name) for name in self._service.residents.offers]})

    async def model(self, http: HTTPRequest, body: bytes) -> Json:
        return Json(self._model(self._service.residents.find(http.path_params["name"]).name))

    def _model(self, name: str) -> dict[str, Any]:
        residents = self._service.residents
        offer, resident = residents.offers[name], residents.loaded.get(name)
        pipeline = resident.pipeline if resident else None
        length = pipeline.target.cache.capacity if pipeline else offer.context_of()
        meta: dict[str, Any] = {"n_ctx": length, "n_ctx_train": length, "size": offer.size_bytes}
        if pipeline:
            meta |= {"n_vocab": pipeline.target.vocab_size, "drafter": pipeline.drafter_names}
        return {
            "id": name,
            "object": "model",
            "created": offer.created,
            "owned_by": "edgespec",
            "context_length": length,
            "max_model_len": length,
            "loaded": pipeline is not None,
            "meta": meta,
        }

    async def chat(self, http: HTTPRequest, body: bytes) -> Json | Streamed:
        asked = read(body, ChatRequest)
        messages = plain_messages(asked.messages)
        variables = template_variables(asked.chat_template_kwargs)
        prompt = Chat(messages, tuple(asked.tools or ()), _tool_choice(asked), variables)
        request = asked.request(http, prompt, "chat", asked.response_format)
        return await self._respond(asked, request, ChatShape(asked))

    async def completion(self, http: HTTPRequest, body: bytes) -> Json | Streamed:
        asked = read(body, CompletionRequest)
        # An editor types on: the hole that it asked for before is of no use.
        place = http.scope["path"] if asked.suffix else None
        request = asked.request(http, _prompt(asked), "completion", asked.response_format, place=place)
        return await self._respond(asked, request, TextShape(asked))

    async def _respond(self, asked: ChatRequest | CompletionRequest, request: Request, shape: Shape) -> Json | Streamed:
        count = several.checked(asked.n, "n")
        first = await self._service.answer(request)
        shape.model = first.model
        if asked.stream:
            return Streamed(self._events(first, request, count, shape), wire.SSE, first.close)
        results: list[Generation] = []
        choices = []
        async with aclosing(several.answers(self._service, request, first, count)) as answers:
            async for index, answer in answers:
                results.append(await answer.whole())
                choices.append(shape.choice(index, answer, results[-1]))
        return Json(shape.whole(choices, results))

    async def _events(self, first: Answer, request: Request, count: int, shape: Shape) -> AsyncGenerator[bytes, None]:
        results: list[Generation] = []
        try:
            async with aclosing(several.answers(self._service, request, first, count)) as answers:
                async for index, answer in answers:
                    yield event(shape.first(index, answer))
                    async with aclosing(wire.pinged(answer)) as chunks:
                        async for chunk in chunks:
                            if chunk is None:
                                yield wire.PING
                                continue
                            for part in shape.parts(index, chunk):
                                yield event(part)
                            if chunk.result is not None:
                                results.append(chunk.result)
            if (last := shape.usage(results)) is not None:
                yield event(last)
            yield wire.DONE
        except Exception as error:
            yield event(shape_error(reported(error)))


def _prompt(asked: CompletionRequest) -> Text | Tokens | Infill:
    given = asked.prompt
    if isinstance(given, str):
        return Infill(given, asked.suffix) if asked.suffix else Text(given)
    if asked.suffix:
        raise BadRequest("suffix: it goes with a prompt that is one text", param="suffix")
    ids = [each for each in given if isinstance(each, int)]
    if len(ids) == len(given):
        return Tokens(ids)
    if len(given) > 1 or not isinstance(given[0], str):
        raise BadRequest("prompt: several texts; allowed: one, or token ids", param="prompt")
    return Text(given[0])


def _tool_choice(asked: ChatRequest) -> str:
    choice = asked.tool_choice
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise BadRequest(f"tool_choice: got {choice!r}; allowed: auto, none, required", param="tool_choice")
        return choice
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise BadRequest("tool_choice: an object has to name a function", param="tool_choice")
    return f"function:{name}"
