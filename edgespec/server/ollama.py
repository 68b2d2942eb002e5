"""Ollama's wire format: chat, generate, and what its clients ask about models. Streams are lines of JSON."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timezone
from typing import Any

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.routing import Route

from edgespec.server import wire
from edgespec.server.answer_parts import Parts, PartScanner
from edgespec.server.fields import Common, read
from edgespec.server.logprobs import LogprobScanner, Scored, asked_for, entries
from edgespec.server.messages import plain_messages
from edgespec.server.refusals import BadRequest, NoModel, NotOffered, Refusal, refusal
from edgespec.server.residents import Offer
from edgespec.server.schema import Chat, Infill, Kind, Prompt, Request, Text
from edgespec.server.service import Answer, Service
from edgespec.server.stderr import reported
from edgespec.server.wire import Endpoint, Json, Streamed, line
from edgespec.text.tool_calls import is_known_to

VERSION = "0.18.3"
"""of the Ollama whose routes these are; editors refuse an older one, or anything that is no number"""
_ARCHITECTURE = "edgespec"
_TELL_S = 1.0
"""between two lines on how far a download is"""
NOT_OFFERED = ("create", "copy", "push", "embed", "embeddings", "blobs/{digest}")


class _WritingRequest(Common, kw_only=True):
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def alternatives(self) -> int | None:
        return asked_for(self.logprobs, self.top_logprobs)


class ChatRequest(_WritingRequest, kw_only=True):
    messages: list[dict[str, Any]] = msgspec.field(default_factory=list)
    tools: list[dict[str, Any]] | None = None


class GenerateRequest(_WritingRequest, kw_only=True):
    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    raw: bool = False


class NameRequest(msgspec.Struct, kw_only=True):
    """``name`` is the older spelling."""

    model: str | None = None
    name: str | None = None
    stream: bool = True

    @property
    def asked(self) -> str:
        if not (name := self.model or self.name):
            raise BadRequest("model is required", param="model")
        return name


def routes(service: Service) -> list[Route]:
    """Every route of this format."""
    handlers = Ollama(service)
    posts = {"show": handlers.show, "generate": handlers.generate, "chat": handlers.chat, "pull": handlers.pull}
    gets = {"version": handlers.version, "tags": handlers.tags, "ps": handlers.ps}
    return [
        *[Route(f"/api/{name}", Endpoint(each, shape_error), methods=["POST"]) for name, each in posts.items()],
        *[Route(f"/api/{name}", Endpoint(each, shape_error), methods=["GET"]) for name, each in gets.items()],
        Route("/api/delete", Endpoint(handlers.delete, shape_error), methods=["DELETE"]),
        *[Route(f"/api/{n}", Endpoint(handlers.refuse, shape_error), methods=["POST"]) for n in NOT_OFFERED],
        Route("/", Endpoint(handlers.root, shape_error), methods=["GET"]),
    ]


def shape_error(why: Refusal) -> dict[str, Any]:
    return {"error": why.message}


class Ollama:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def root(self, http: HTTPRequest, body: bytes) -> Json:
        return Json(b"edgespec is running", media_type="text/plain")

    async def version(self, http: HTTPRequest, body: bytes) -> Json:
        return Json({"version": VERSION})

    async def tags(self, http: HTTPRequest, body: bytes) -> Json:
        return Json({"models": [_tag(offer) for offer in self._service.residents.offers.values()]})

    async def ps(self, http: HTTPRequest, body: bytes) -> Json:
        models = []
        for each in self._service.residents.loaded.values():
            until = datetime.fromtimestamp(each.expires_at, timezone.utc) if each.expires_at else _NEVER
            models.append(_tag(each.offer) | {"size": each.bytes, "size_vram": 0, "expires_at": _time(until)})
        return Json({"models": models})

    async def show(self, http: HTTPRequest, body: bytes) -> Json:
        """Loads the model: its context and template are not known before."""
        offer = self._service.residents.find(read(body, NameRequest).asked)
        resident = await self._service.residents.take(offer.name, None)
        try:
            pipeline = resident.worker.ready.result()
        finally:
            self._service.residents.give_back(resident)
        length = pipeline.target.cache.capacity
        source = pipeline.template.source if pipeline.template else ""
        fills = pipeline.fills_holes
        capabilities = ["completion", *(["tools"] if is_known_to(source) else []), *(["insert"] if fills else [])]
        ends = "".join(
            f"\nstop {pipeline.tokenizer.engine.id_to_token(token)!r}" for token in sorted(pipeline.stop_ids)
        )
        return Json(
            {
                "modelfile": f"FROM {offer.name}",
                "parameters": f"num_ctx {length}{ends}",
                "template": "{{ .Prompt }}{{ .Suffix }}" if fills else "{{ .Prompt }}",
                "details": _details(offer),
                "model_info": {
                    "general.architecture": _ARCHITECTURE,
                    "general.basename": offer.name,
                    f"{_ARCHITECTURE}.context_length": length,
                    f"{_ARCHITECTURE}.vocab_size": pipeline.target.vocab_size,
                },
                "capabilities": capabilities,
                "modified_at": _created(offer),
            }
        )

    async def chat(self, http: HTTPRequest, body: bytes) -> Json | Streamed:
        asked = read(body, ChatRequest)
        if not asked.messages:
            return await self._load(asked, "chat", {"message": {"role": "assistant", "content": ""}})
        chat = Chat(plain_messages(asked.messages), tuple(asked.tools or ()), variables=_variables(asked))
        return await self._respond(asked, asked.request(http, chat, "chat", _format(asked.format)), _chat_part)

    async def generate(self, http: HTTPRequest, body: bytes) -> Json | Streamed:
        asked = read(body, GenerateRequest)
        if not asked.prompt and not asked.suffix:
            return await self._load(asked, "completion", {"response": ""})
        prompt: Prompt
        place = None
        if asked.suffix:
            if asked.logprobs:
                raise BadRequest("logprobs: not of a text before a suffix", param="logprobs")
            prompt, place = Infill(asked.prompt, asked.suffix), http.scope["path"]
        elif asked.raw:
            prompt = Text(asked.prompt)
        else:
            system = [{"role": "system", "content": asked.system}] if asked.system else []
            prompt = Chat([*system, {"role": "user", "content": asked.prompt}], variables=_variables(asked))
        request = asked.request(http, prompt, "completion", _format(asked.format), place=place)
        return await self._respond(asked, request, _text_part)

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
        offer = self._service.residents.find(read(body, NameRequest).asked)
        await self._service.residents.release(offer.name)
        raise NotOffered(f"{offer.name} is unloaded; its files stay. Remove the folder that `edgespec models` names")

    async def refuse(self, http: HTTPRequest, body: bytes) -> Json:
        raise NotOffered(
            f"{http.scope['path']} is not supported: this server writes texts, and makes no embeddings or models"
        )

    async def _load(self, asked: ChatRequest | GenerateRequest, kind: Kind, content: Mapping[str, Any]) -> Json:
        """A request without a prompt loads a model, or unloads it where it is kept for no time."""
        residents = self._service.residents
        offer = residents.find(asked.model)
        if asked.keep_alive_s == 0:
            await residents.release(offer.name)
        else:
            residents.give_back(await residents.take(offer.name, kind), asked.keep_alive_s)
        reason = "unload" if asked.keep_alive_s == 0 else "load"
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
                if chunk is None:  # a line of JSON has no sign of life that says nothing
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


def _variables(asked: ChatRequest | GenerateRequest) -> dict[str, Any]:
    return {} if asked.think is None else {"enable_thinking": asked.think not in (False, "false")}


def _tag(offer: Offer) -> dict[str, Any]:
    digest = hashlib.sha256(offer.name.encode()).hexdigest()  # of the name: clients only compare it
    about = {"name": offer.name, "model": offer.name, "modified_at": _created(offer)}
    return {**about, "size": offer.size_bytes, "digest": digest, "details": _details(offer)}


def _details(offer: Offer) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "openvino",
        "family": _ARCHITECTURE,
        "families": [_ARCHITECTURE],
        "parameter_size": "",
        "quantization_level": "",
    }


_NEVER = datetime(2318, 1, 1, tzinfo=timezone.utc)


def _created(offer: Offer) -> str:
    return _time(datetime.fromtimestamp(offer.created, timezone.utc))


def _now() -> str:
    return _time(datetime.now(timezone.utc))


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
