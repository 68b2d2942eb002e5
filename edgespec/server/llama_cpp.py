"""The wire format of llama.cpp's own server, which editors speak: completion of holes and texts, tokens, slots.

/infill fills the hole between ``input_prefix`` + ``prompt`` and ``input_suffix``. See ``text.infill``: the hole is
anchored at the start of its line, wherever a client puts what was typed there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from time import perf_counter
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.routing import Route

from edgespec.generation import Generation
from edgespec.pipeline import DEFAULT_HOLE_TOKENS, Pipeline
from edgespec.server import figures, slot_files, wire
from edgespec.server.fields import Common, read
from edgespec.server.messages import plain_messages, template_variables
from edgespec.server.refusals import BadRequest, NotOffered, Refusal
from edgespec.server.schema import Chunk, Infill, Request, Text, Tokens
from edgespec.server.service import Answer, Service
from edgespec.server.stderr import reported
from edgespec.server.wire import Endpoint, Json, Streamed, event

T = TypeVar("T")
SLOT_ACTIONS = ("save", "restore", "erase")


class Extra(msgspec.Struct):
    """Text of another file. A client without names sends the text alone."""

    text: str
    filename: str | None = None


class GenerationRequest(Common, kw_only=True):
    response_fields: list[str] | None = None
    return_tokens: bool = False
    t_max_prompt_ms: float | None = None
    t_max_predict_ms: float | None = None
    n_indent: int = 0
    json_schema: dict[str, Any] | None = None

    @property
    def limit_s(self) -> float | None:
        """Behind the first line, as llama.cpp means it."""
        given = self.t_max_predict_ms
        return given / 1e3 if given is not None and given > 0 else None


class InfillRequest(GenerationRequest, kw_only=True):
    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[Extra] | None = None
    prompt: str = ""
    filename: str | None = None


class CompletionRequest(GenerationRequest, kw_only=True):
    prompt: str | list[int | str]


class SlotRequest(msgspec.Struct, kw_only=True):
    filename: str | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    content: str = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False
    model: str | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


class TemplateRequest(msgspec.Struct, kw_only=True):
    messages: list[dict[str, Any]]
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def routes(service: Service) -> list[Route]:
    """Every route of this format but /health, which is everybody's."""
    handlers = LlamaCpp(service)
    posts: dict[str, wire.Handle] = {
        "/infill": handlers.infill,
        "/completion": handlers.completion,
        "/completions": handlers.completion,
        "/tokenize": handlers.tokenize,
        "/detokenize": handlers.detokenize,
        "/apply-template": handlers.apply_template,
        "/slots/{number}": handlers.slot_action,
    }
    gets: dict[str, wire.Handle] = {"/props": handlers.props, "/slots": handlers.slots}
    return [
        *(Route(path, Endpoint(handle, shape_error), methods=["POST"]) for path, handle in posts.items()),
        *(Route(path, Endpoint(handle, shape_error), methods=["GET"]) for path, handle in gets.items()),
    ]


PATHS = ("/infill", "/completion", "/tokenize", "/detokenize", "/apply-template", "/slots", "/props")
"""what its routes begin with"""


def shape_error(why: Refusal) -> dict[str, Any]:
    return {"error": {"code": why.status, "message": why.message, "type": why.kind}}


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
        client = http.client.host if http.client else ""
        length = DEFAULT_HOLE_TOKENS if asked.length is None else asked.length
        return await self._respond(asked, hole, key=asked.key or f"infill {client} {asked.filename}", length=length)

    async def completion(self, http: HTTPRequest, body: bytes) -> Json | Streamed:
        asked = read(body, CompletionRequest)
        given = asked.prompt
        prompt: Text | Tokens
        if isinstance(given, str):
            prompt = Text(given)
        elif all(isinstance(each, int) for each in given):
            prompt = Tokens([each for each in given if isinstance(each, int)])
        else:
            raise BadRequest("prompt: a list with texts; allowed: one text, or token ids", param="prompt")
        return await self._respond(asked, prompt, key=asked.key, length=asked.length, time_limit_s=asked.limit_s)

    async def _respond(
        self,
        asked: InfillRequest | CompletionRequest,
        prompt: Infill | Text | Tokens,
        *,
        key: str | None,
        length: int | None,
        time_limit_s: float | None = None,
    ) -> Json | Streamed:
        response_format = None
        if asked.json_schema:
            response_format = {"type": "json_schema", "json_schema": {"schema": asked.json_schema}}
        answer = await self._service.answer(
            Request(
                prompt=prompt,
                kind="completion",
                model=asked.model,
                key=key,
                sampling=asked.sampling,
                max_new_tokens=length,
                is_unlimited=asked.is_unlimited,
                stop=asked.stops,
                ignore_eos=bool(asked.ignore_eos),
                response_format=response_format,
                num_draft_tokens=asked.num_draft_tokens,
                time_limit_s=time_limit_s,
                keep_alive_s=asked.keep_alive_s,
            )
        )
        if asked.stream:
            return Streamed(_events(answer, asked), wire.SSE, answer.close)
        try:
            whole = _whole(answer, asked, await answer.whole())
        finally:
            answer.close()
        return Json(whole if asked.response_fields is None else _only(whole, asked.response_fields))

    async def tokenize(self, http: HTTPRequest, body: bytes) -> Json:
        asked = read(body, TokenizeRequest)

        def tokens(pipeline: Pipeline) -> list[Any]:
            tokenizer = pipeline.tokenizer
            tokenizer.require_fit(asked.content, 8 * pipeline.target.cache.capacity)
            ids = tokenizer.encode(asked.content, raw=asked.add_special)
            return [{"id": each, "piece": _piece(pipeline, each)} for each in ids] if asked.with_pieces else ids

        return Json({"tokens": await self._ask(asked.model, tokens)})

    async def detokenize(self, http: HTTPRequest, body: bytes) -> Json:
        asked = read(body, DetokenizeRequest)

        def text(pipeline: Pipeline) -> str:
            size = pipeline.target.vocab_size
            if bad := [each for each in asked.tokens if not 0 <= each < size]:
                raise BadRequest(f"tokens: got {bad[0]}; allowed: 0 to {size - 1}", param="tokens")
            return str(pipeline.tokenizer.engine.decode(asked.tokens, skip_special_tokens=False))

        return Json({"content": await self._ask(asked.model, text)})

    async def apply_template(self, http: HTTPRequest, body: bytes) -> Json:
        asked = read(body, TemplateRequest)
        variables = template_variables(asked.chat_template_kwargs) | ({"tools": asked.tools} if asked.tools else {})

        def prompt(pipeline: Pipeline) -> str:
            if pipeline.template is None:
                raise NotOffered(f"{pipeline.bundle.name} has no chat template")
            return pipeline.template.render(plain_messages(asked.messages), **variables)

        return Json({"prompt": await self._ask(asked.model, prompt)})

    async def props(self, http: HTTPRequest, body: bytes) -> Json:
        name = http.query_params.get("model")
        async with self._pipeline(name) as pipeline:
            bundle = pipeline.bundle
            return Json(
                {
                    "default_generation_settings": {
                        "id": 0,
                        "n_ctx": pipeline.target.cache.capacity,
                        "params": _settings(Common(), pipeline, None),
                    },
                    "total_slots": 1,
                    "model_alias": bundle.name,
                    "model_path": bundle.name,
                    "modalities": {"vision": False, "audio": False},
                    "chat_template": bundle.chat_template() or "",
                    "bos_token": bundle.manifest.generation.bos_token or "",
                    "eos_token": bundle.manifest.generation.eos_token or "",
                    "build_info": "edgespec",
                    "endpoint_slots": True,
                    "endpoint_props": False,
                    "endpoint_metrics": True,
                }
            )

    async def _ask(self, model: str | None, question: Callable[[Pipeline], T]) -> T:
        """What may take a while for a long text, beside the event loop: streams of others go on."""
        async with self._pipeline(model) as pipeline:
            return await asyncio.to_thread(question, pipeline)

    async def slots(self, http: HTTPRequest, body: bytes) -> Json:
        """One slot for each loaded model: requests of one model come in turn."""
        found = []
        for number, resident in enumerate(self._service.residents.loaded.values()):
            if (pipeline := resident.pipeline) is not None:
                found.append(
                    {
                        "id": number,
                        "model": pipeline.bundle.name,
                        "n_ctx": pipeline.target.cache.capacity,
                        "n_past": pipeline.target.cache.length,
                        "speculative": pipeline.drafter.name != "none",
                        "is_processing": resident.worker.running is not None,
                    }
                )
        return Json(found)

    async def slot_action(self, http: HTTPRequest, body: bytes) -> Json:
        """Write what a model's cache holds to a file, take it back from there, or forget it."""
        action, number = http.query_params.get("action"), http.path_params["number"]
        if action not in SLOT_ACTIONS:
            raise BadRequest(f"action: got {action!r}; allowed: {', '.join(SLOT_ACTIONS)}", param="action")
        names = list(self._service.residents.loaded)
        if not (number.isascii() and number.isdigit() and int(number) < len(names)):
            raise BadRequest(f"slot: got {number!r}; allowed: 0 to {len(names) - 1}", param="id_slot")
        path = slot_files.path_of(read(body, SlotRequest, empty=True).filename) if action != "erase" else None
        resident = await self._service.residents.take(names[int(number)], None)
        try:
            began = perf_counter()
            head: dict[str, Any] = {"id_slot": int(number)}
            if path is None:
                erased = await asyncio.wrap_future(resident.worker.call(slot_files.erase))
                return Json(head | {"n_erased": erased})
            move = slot_files.save if action == "save" else slot_files.restore
            moved = await asyncio.wrap_future(resident.worker.call(lambda pipeline: move(pipeline, path)))
            tokens, size = ("n_saved", "n_written") if action == "save" else ("n_restored", "n_read")
            timings = {f"{action}_ms": 1e3 * (perf_counter() - began)}
            return Json(head | {"filename": path.stem, tokens: moved.tokens, size: moved.nbytes, "timings": timings})
        finally:
            self._service.residents.give_back(resident)

    @asynccontextmanager
    async def _pipeline(self, model: str | None) -> AsyncGenerator[Pipeline, None]:
        """A loaded model, to ask what needs no engine."""
        resident = await self._service.residents.take(model, None)
        try:
            yield resident.worker.ready.result()
        finally:
            self._service.residents.give_back(resident)


async def _events(answer: Answer, asked: InfillRequest | CompletionRequest) -> AsyncGenerator[bytes, None]:
    written = 0
    try:
        async with aclosing(wire.pinged(answer)) as chunks:
            async for chunk in chunks:
                if chunk is None:
                    yield wire.PING
                    continue
                written += sum(each.committed for each in chunk.rounds)
                if chunk.text or (asked.return_progress and chunk.read):
                    yield event(_part(answer, asked, chunk, written))
                if chunk.result is not None:
                    yield event(_whole(answer, asked, chunk.result) | {"content": "", "tokens": []})
    except Exception as error:
        yield event(shape_error(reported(error)))
    finally:
        answer.close()


def _part(answer: Answer, asked: Common, chunk: Chunk, written: int) -> dict[str, Any]:
    part: dict[str, Any] = {
        "index": 0,
        "content": chunk.text,
        "tokens": [],
        "stop": False,
        "id_slot": -1 if asked.id_slot is None else asked.id_slot,
        "tokens_predicted": written,
        "tokens_evaluated": len(answer.prepared.tokens),
    }
    if asked.return_progress and chunk.read:
        part["prompt_progress"] = {"processed": chunk.read[0], "total": chunk.read[1]}
    if asked.edgespec_rounds and chunk.rounds:
        part["edgespec"] = {"rounds": figures.rounds(chunk.rounds)}
    return part


def _whole(answer: Answer, asked: InfillRequest | CompletionRequest, result: Generation) -> dict[str, Any]:
    stats = result.stats
    stop_type, word = _stop(answer, result)
    found: dict[str, Any] = {
        "index": 0,
        "content": result.text,
        "tokens": result.token_ids if asked.return_tokens else [],
        "id_slot": 0 if asked.id_slot is None else asked.id_slot,
        "stop": True,
        "model": answer.model,
        "tokens_predicted": len(result.token_ids),
        "tokens_evaluated": stats.prompt_tokens,
        "generation_settings": _settings(asked, answer.pipeline, result),
        "prompt": "",
        "has_new_line": "\n" in result.text,
        "truncated": False,
        "stop_type": stop_type,
        "stopping_word": word,
        "tokens_cached": stats.prompt_tokens + max(len(result.token_ids) - 1, 0),
        "timings": figures.timings(result),
    }
    if asked.edgespec_rounds:
        found["edgespec"] = {"rounds": figures.rounds(stats.rounds)}
    return found


def _stop(answer: Answer, result: Generation) -> tuple[str, str]:
    """llama.cpp's name of why the text ended, and the stop string."""
    if result.finish_reason != "stop":
        return "limit", ""
    found, hole = result.stop_string, answer.prepared.hole
    if found is None or (hole is not None and found in (*hole.stops, hole.rules.next_line)):
        return "eos", ""
    return ("word", found) if found in answer.request.stop else ("limit", "")


def _settings(asked: Common, pipeline: Pipeline, result: Generation | None) -> dict[str, Any]:
    """What applied, by llama.cpp's names."""
    sampling = asked.sampling
    length = -1 if asked.length is None else asked.length
    return {
        "n_predict": length,
        "max_tokens": length,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "seed": result.seed if result is not None and result.seed is not None else sampling.seed,
        "stop": list(asked.stops),
        "ignore_eos": bool(asked.ignore_eos),
        "stream": bool(asked.stream),
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
        "speculative.types": pipeline.drafter.name,
    }


def _only(whole: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The fields a client asked for. A path like ``timings/prompt_n`` stays the name of the value.

    >>> _only({"content": "x", "timings": {"prompt_n": 3}}, ["content", "timings/prompt_n", ""])
    {'content': 'x', 'timings/prompt_n': 3}
    """
    found = {}
    for name in names:
        value: Any = whole
        for part in name.split("/"):
            if not (isinstance(value, Mapping) and part in value):
                break
            value = value[part]
        else:
            found[name] = value
    return found


def _piece(pipeline: Pipeline, token: int) -> str:
    """The text of a token. A part of a character becomes U+FFFD."""
    return str(pipeline.tokenizer.engine.decode([token], skip_special_tokens=False))
