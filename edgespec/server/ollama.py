"""Ollama's wire format: chat and generate. Streams are lines of JSON."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.routing import Route

from edgespec.server import ollama_models, wire
from edgespec.server.answer_parts import Parts, PartScanner
from edgespec.server.fields import Common, read
from edgespec.server.logprobs import Alternatives, LogprobScanner, Scored, asked_for, entries
from edgespec.server.messages import Message
from edgespec.server.ollama_models import shape_error, time_text
from edgespec.server.refusals import BadRequest
from edgespec.server.schema import Chat, Infill, Prompt, Request, Text
from edgespec.server.service import Answer, Service
from edgespec.server.stderr import reported
from edgespec.server.wire import Endpoint, Json, Streamed, line
from edgespec.text.messages import plain_messages


class _WritingRequest(Common, kw_only=True):
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives = None

    @property
    def alternatives(self) -> int | None:
        return asked_for(self.logprobs, self.top_logprobs)


class ChatRequest(_WritingRequest, kw_only=True):
    messages: list[Message] = msgspec.field(default_factory=list)
    tools: list[dict[str, Any]] | None = None


class GenerateRequest(_WritingRequest, kw_only=True):
    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    raw: bool = False


def routes(service: Service) -> list[Route]:
    """Every route of this format."""
    handlers = Ollama(service)
    posts = {"generate": handlers.generate, "chat": handlers.chat}
    writing = [Route(f"/api/{name}", Endpoint(each, shape_error), methods=["POST"]) for name, each in posts.items()]
    return [*writing, *ollama_models.routes(service)]


class Ollama:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat(self, http: HTTPRequest, body: bytes) -> Json | Streamed:
        asked = read(body, ChatRequest)
        request = asked.request(http, Chat(()), "chat", _format(asked.format))
        if not asked.messages:
            return await self._load(request, {"message": {"role": "assistant", "content": ""}})
        chat = Chat(plain_messages(asked.messages), tuple(asked.tools or ()), **_thinking(asked))
        return await self._respond(asked, replace(request, prompt=chat), _chat_part)

    async def generate(self, http: HTTPRequest, body: bytes) -> Json | Streamed:
        asked = read(body, GenerateRequest)
        place = http.scope["path"] if asked.suffix else None
        request = asked.request(http, Text(asked.prompt), "completion", _format(asked.format), place=place)
        if not asked.prompt and not asked.suffix:
            return await self._load(request, {"response": ""})
        prompt: Prompt
        if asked.suffix:
            if asked.logprobs:
                raise BadRequest("logprobs: not of a text before a suffix", param="logprobs")
            prompt = Infill(asked.prompt, asked.suffix)
        elif asked.raw:
            if asked.system:  # as Ollama says it
                raise BadRequest("raw mode does not support system", param="system")
            prompt = Text(asked.prompt)
        else:
            system = [{"role": "system", "content": asked.system}] if asked.system else []
            prompt = Chat([*system, {"role": "user", "content": asked.prompt}], **_thinking(asked))
        return await self._respond(asked, replace(request, prompt=prompt), _text_part)

    async def _load(self, request: Request, content: Mapping[str, Any]) -> Json:
        """A request without a prompt loads a model, or unloads it where it is kept for no time."""
        residents = self._service.residents
        offer = residents.find(request.model)
        if request.keep_alive_s == 0:
            await residents.release(offer.name)
        else:
            residents.give_back(await residents.take(offer.name, request.kind), request.keep_alive_s)
        reason = "unload" if request.keep_alive_s == 0 else "load"
        return Json({"model": offer.name, "created_at": _now(), **content, "done": True, "done_reason": reason})

    async def _respond(self, asked: ChatRequest | GenerateRequest, request: Request, part: _Part) -> Json | Streamed:
        answer = await self._service.answer(request)
        if asked.stream is None or asked.stream:
            return Streamed(_lines(answer, part), wire.NDJSON, answer.close)
        try:
            result = await answer.whole()
        finally:
            answer.close()
        found = PartScanner(answer.prepared).whole(result.text)
        scores = LogprobScanner.of(answer)
        scored = scores.whole(result) if scores else ()
        return Json(_head(answer) | part(found) | _scored(scored) | _end(answer))


async def _lines(answer: Answer, part: _Part) -> AsyncGenerator[bytes, None]:
    scan, scores = PartScanner(answer.prepared), LogprobScanner.of(answer)
    try:
        async with aclosing(wire.pinged(answer)) as chunks:
            async for chunk in chunks:
                if chunk is None:  # a sign of life
                    yield line(_head(answer) | part(Parts()) | {"done": False})
                    continue
                found = scan.push(chunk.text)
                scored = scores.push(chunk.logprobs, chunk.text) if scores else ()
                if found or scored:
                    yield line(_head(answer) | part(found) | _scored(scored) | {"done": False})
                if chunk.result is not None:
                    yield line(_head(answer) | part(scan.flush()) | _end(answer))
    except Exception as error:
        yield line(shape_error(reported(error)))
    finally:
        answer.close()


class _Part:
    """How parts of an answer look in one route."""

    def __init__(self, is_chat: bool) -> None:
        self._is_chat = is_chat

    def __call__(self, found: Parts) -> dict[str, Any]:
        thinking = {"thinking": found.reasoning} if found.reasoning else {}
        if not self._is_chat:
            return {"response": found.content, **thinking}
        message: dict[str, Any] = {"role": "assistant", "content": found.content, **thinking}
        if found.calls:
            message["tool_calls"] = [
                {"function": {"name": call.name, "arguments": msgspec.json.decode(call.arguments)}}
                for _, call in found.calls
            ]
        return {"message": message}


_chat_part, _text_part = _Part(True), _Part(False)


def _scored(scored: Sequence[Scored]) -> dict[str, Any]:
    return {"logprobs": entries(scored)} if scored else {}


def _head(answer: Answer) -> dict[str, Any]:
    return {"model": answer.model, "created_at": _now()}


def _end(answer: Answer) -> dict[str, Any]:
    """Counts, and times in nanoseconds."""
    assert answer.result is not None
    result, stats = answer.result, answer.result.stats
    eval_s = stats.decode_s or sum(r.draft_s + r.target_s + r.host_s for r in stats.rounds)
    return {
        "done": True,
        "done_reason": result.finish_reason,
        "total_duration": int(1e9 * answer.total_s),
        "load_duration": int(1e9 * max(answer.total_s - stats.prefill_s - eval_s, 0.0)),
        "prompt_eval_count": stats.prompt_tokens,
        "prompt_eval_duration": int(1e9 * stats.prefill_s),
        "eval_count": len(result.token_ids),
        "eval_duration": int(1e9 * eval_s),
    }


def _format(given: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if given in (None, ""):
        return None
    if isinstance(given, dict):
        return {"type": "json_schema", "json_schema": {"schema": given}}
    if given != "json":
        raise BadRequest(f"format: got {given!r}; allowed: json, or a schema", param="format")
    return {"type": "json_object"}


def _thinking(asked: ChatRequest | GenerateRequest) -> dict[str, Any]:
    if asked.think is None:
        return {}
    is_on = asked.think not in (False, "false")
    return {"variables": {"enable_thinking": is_on}, "reasons": is_on}


def _now() -> str:
    return time_text(datetime.now(timezone.utc))
