"""OpenAI's wire format: models, chat completions, completions. Also under /v3, where OpenVINO's model server has it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from time import time
from typing import Any

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.routing import Route

from edgespec.generation import Generation
from edgespec.server import figures, wire
from edgespec.server.answer_parts import Parts, PartScanner
from edgespec.server.fields import Common, read
from edgespec.server.messages import plain_messages, template_variables
from edgespec.server.refusals import BadRequest, Refusal
from edgespec.server.schema import Chat, Chunk, Infill, Request, Text, Tokens
from edgespec.server.service import Answer, Service
from edgespec.server.stderr import reported
from edgespec.server.wire import Endpoint, Json, Streamed, event
from edgespec.text.tool_calls import ToolCall

PREFIXES = ("/v1", "/v3")
_MOST_ANSWERS = 8


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class ChatRequest(Common, kw_only=True):
    messages: list[dict[str, Any]]
    n: int | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(Common, kw_only=True):
    prompt: str | list[int | str]
    n: int | None = None
    suffix: str | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None


def routes(service: Service) -> list[Route]:
    """Every route of this format."""
    handlers = OpenAI(service)
    found = []
    for prefix in PREFIXES:
        found += [
            Route(f"{prefix}/models", Endpoint(handlers.models, shape_error), methods=["GET"]),
            Route(f"{prefix}/models/{{name:path}}", Endpoint(handlers.model, shape_error), methods=["GET"]),
            Route(f"{prefix}/chat/completions", Endpoint(handlers.chat, shape_error), methods=["POST"]),
            Route(f"{prefix}/completions", Endpoint(handlers.completion, shape_error), methods=["POST"]),
        ]
    return found


def shape_error(why: Refusal) -> dict[str, Any]:
    return {"error": {"message": why.message, "type": why.kind, "param": why.param, "code": why.code}}


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
        length = pipeline.target.cache.capacity if pipeline else offer.context_length
        meta: dict[str, Any] = {"n_ctx": length, "n_ctx_train": length, "size": offer.size_bytes}
        if pipeline:
            meta |= {"n_vocab": pipeline.target.vocab_size, "drafter": pipeline.drafter.name}
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
        request = asked.request(prompt, "chat", asked.response_format)
        return await self._respond(asked, request, _ChatShape(asked))

    async def completion(self, http: HTTPRequest, body: bytes) -> Json | Streamed:
        asked = read(body, CompletionRequest)
        request = asked.request(_prompt(asked), "completion", asked.response_format)
        if asked.suffix and asked.key is None:  # an editor types on: what it asked for before is of no use
            request = replace(request, key=f"{http.client.host if http.client else ''} {http.scope['path']}")
        return await self._respond(asked, request, _TextShape(asked))

    async def _respond(
        self, asked: ChatRequest | CompletionRequest, request: Request, shape: _Shape
    ) -> Json | Streamed:
        count = asked.n or 1
        if not 1 <= count <= _MOST_ANSWERS:
            raise BadRequest(f"n: got {count}; allowed: 1 to {_MOST_ANSWERS}", param="n")
        answer = await self._service.answer(request)
        shape.model = answer.model
        if asked.stream:
            return Streamed(self._events(answer, request, count, shape), wire.SSE, answer.close)
        results: list[Generation] = []
        choices = []
        for index in range(count):
            if index:
                answer = await self._service.answer(_again(request, index, results[0]))
            try:
                results.append(await answer.whole())
            finally:
                answer.close()
            choices.append(shape.choice(index, answer, results[-1]))
        return Json(shape.whole(choices, results))

    async def _events(self, answer: Answer, request: Request, count: int, shape: _Shape) -> AsyncGenerator[bytes, None]:
        results: list[Generation] = []
        try:
            for index in range(count):
                if index:
                    answer = await self._service.answer(_again(request, index, results[0]))
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
        finally:
            answer.close()


class _Shape:
    """How one kind of completion looks: whole, and in parts."""

    prefix, object, part_object = "", "", ""

    def __init__(self, asked: ChatRequest | CompletionRequest) -> None:
        self.model = ""
        self._id = self.prefix + secrets.token_hex(12)
        self._created = int(time())
        self._rounds, self._progress = asked.edgespec_rounds, asked.return_progress
        self._usage = asked.stream_options is not None and asked.stream_options.include_usage

    def whole(self, choices: Sequence[Any], results: Sequence[Generation]) -> dict[str, Any]:
        found = self._head(self.object) | {"choices": choices, "usage": figures.usage(results)}
        found["timings"] = figures.timings(results[-1])
        if self._rounds:
            found["edgespec"] = {"rounds": figures.rounds(results[-1].stats.rounds)}
        return found

    def usage(self, results: Sequence[Generation]) -> dict[str, Any] | None:
        if not self._usage:
            return None
        return self._head(self.part_object) | {"choices": [], "usage": figures.usage(results)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self.model}

    def _part(self, index: int, content: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": None, "finish_reason": finish}
        return self._head(self.part_object) | {"choices": [choice]}

    def _noted(self, part: dict[str, Any], chunk: Chunk) -> dict[str, Any]:
        """With what the client asked to know beside the text."""
        if self._rounds and chunk.rounds:
            part["edgespec"] = {"rounds": figures.rounds(chunk.rounds)}
        if self._progress and chunk.read:
            part["prompt_progress"] = {"processed": chunk.read[0], "total": chunk.read[1]}
        if chunk.result is not None:
            part["timings"] = figures.timings(chunk.result)
        return part

    def first(self, index: int, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError

    def parts(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        raise NotImplementedError

    def choice(self, index: int, answer: Answer, result: Generation) -> dict[str, Any]:
        raise NotImplementedError


class _ChatShape(_Shape):
    prefix, object, part_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def first(self, index: int, answer: Answer) -> dict[str, Any]:
        self._scan, self._calls = PartScanner(answer.prepared), 0
        return self._part(index, {"delta": {"role": "assistant", "content": ""}})

    def parts(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        found = self._scan.push(chunk.text)
        if chunk.result is not None:
            last = self._scan.flush()
            found = Parts(found.content + last.content, found.reasoning + last.reasoning, found.calls + last.calls)
        parts = []
        if found or chunk.rounds or (self._progress and chunk.read):
            delta = self._delta(found)
            if delta or self._rounds or chunk.read:
                parts.append(self._noted(self._part(index, {"delta": delta}), replace(chunk, result=None)))
        if chunk.result is not None:
            finish = "tool_calls" if self._calls else chunk.result.finish_reason
            parts.append(self._noted(self._part(index, {"delta": {}}, finish), Chunk(result=chunk.result)))
        return parts

    def _delta(self, found: Parts) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if found.reasoning:
            delta["reasoning_content"] = found.reasoning
        if found.content:
            delta["content"] = found.content
        if found.calls:
            delta["tool_calls"] = [
                {"index": self._calls + number, **call} for number, call in enumerate(map(_called, found.calls))
            ]
            self._calls += len(found.calls)
        return delta

    def choice(self, index: int, answer: Answer, result: Generation) -> dict[str, Any]:
        found = PartScanner(answer.prepared).whole(result.text)
        message: dict[str, Any] = {"role": "assistant", "content": found.content}
        if found.reasoning:
            message["reasoning_content"] = found.reasoning
        if found.calls:
            message |= {"content": found.content or None, "tool_calls": [_called(call) for call in found.calls]}
        finish = "tool_calls" if found.calls else result.finish_reason
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}


def _called(call: tuple[str, ToolCall]) -> dict[str, Any]:
    name, arguments = call[1].name, call[1].arguments
    return {"id": call[0], "type": "function", "function": {"name": name, "arguments": arguments}}


class _TextShape(_Shape):
    prefix, object, part_object = "cmpl-", "text_completion", "text_completion"

    def first(self, index: int, answer: Answer) -> dict[str, Any]:
        return self._part(index, {"text": ""})

    def parts(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        if not (chunk.text or chunk.result or (self._progress and chunk.read)):
            return []
        finish = chunk.result.finish_reason if chunk.result else None
        return [self._noted(self._part(index, {"text": chunk.text}, finish), chunk)]

    def choice(self, index: int, answer: Answer, result: Generation) -> dict[str, Any]:
        return {"index": index, "text": result.text, "logprobs": None, "finish_reason": result.finish_reason}


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


def _again(request: Request, index: int, first: Generation) -> Request:
    """The same request for a further answer: with the seed that the first one had, and the number of the answer."""
    seed = None if first.seed is None else (first.seed + index) % 2**64
    return replace(request, sampling=replace(request.sampling, seed=seed))


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
