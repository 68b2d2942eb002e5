"""What clients of llama.cpp's server ask about a loaded model: tokens, its template and context, and slots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.routing import Route

from edgespec.errors import ContextFull
from edgespec.pipeline import Pipeline
from edgespec.sampling_params import SamplingParams
from edgespec.server import slot_files, wire
from edgespec.server.fields import Common, described, read, whole_number
from edgespec.server.llama_cpp_answers import settings, shape_error
from edgespec.server.messages import Message, template_variables
from edgespec.server.places import Places
from edgespec.server.refusals import BadRequest, NotOffered
from edgespec.server.service import Service
from edgespec.server.wire import Endpoint, Handle, Json
from edgespec.text.messages import plain_messages, require_shallow

T = TypeVar("T")
SLOT_ACTIONS = ("save", "restore", "erase")
_CONTEXTS = 8
"""of tokens that are made of a text, or a text of them, at most"""


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
    messages: Annotated[list[Message], described(minItems=1)]
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def routes(service: Service) -> list[Route]:
    handlers = Models(service)
    posts: dict[str, Handle] = {
        "/tokenize": handlers.tokenize,
        "/detokenize": handlers.detokenize,
        "/apply-template": handlers.apply_template,
        "/slots/{number}": handlers.slot_action,
    }
    gets: dict[str, Handle] = {"/props": handlers.props, "/slots": handlers.slots}
    return [
        *(Route(path, Endpoint(handle, shape_error), methods=["POST"]) for path, handle in posts.items()),
        *(Route(path, Endpoint(handle, shape_error), methods=["GET"]) for path, handle in gets.items()),
    ]


class Models:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._places = Places(service.longest_queue)

    async def tokenize(self, http: HTTPRequest, body: bytes) -> Json:
        asked = read(body, TokenizeRequest)

        def tokens(pipeline: Pipeline) -> list[Any]:
            tokenizer, most = pipeline.tokenizer, _most_tokens(pipeline)
            try:
                tokenizer.require_fit(asked.content, most)
            except ContextFull as error:  # not of the context: clients would cut by its numbers
                raise BadRequest(f"content: got a longer text; allowed: {most} tokens", param="content") from error
            ids = tokenizer.encode(asked.content, raw=asked.add_special)
            return [{"id": each, "piece": _piece(pipeline, each)} for each in ids] if asked.with_pieces else ids

        return Json({"tokens": await self._ask(asked.model, tokens)})

    async def detokenize(self, http: HTTPRequest, body: bytes) -> Json:
        asked = read(body, DetokenizeRequest)

        def text(pipeline: Pipeline) -> str:
            size, most = pipeline.target.vocab_size, _most_tokens(pipeline)
            if len(asked.tokens) > most:
                raise BadRequest(f"tokens: got {len(asked.tokens)}; allowed: {most}", param="tokens")
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
            messages = plain_messages(asked.messages)
            for name, value in {"messages": messages, **variables}.items():
                require_shallow(value, name)
            return pipeline.template.render(messages, **variables)

        return Json({"prompt": await self._ask(asked.model, prompt)})

    async def props(self, http: HTTPRequest, body: bytes) -> Json:
        name = self._service.residents.find(http.query_params.get("model")).name
        async with self._pipeline(name) as pipeline:
            bundle = pipeline.bundle
            return Json(
                {
                    "default_generation_settings": {
                        "id": 0,
                        "n_ctx": pipeline.target.cache.capacity,
                        "params": settings(Common(), SamplingParams(), pipeline, None),
                    },
                    "total_slots": 1,
                    "model_alias": name,
                    "model_path": name,
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
        """What may take a while for a long text, beside the event loop: streams of others go on. Raises Busy."""
        name = self._service.residents.find(model).name
        with self._places.one(name):
            async with self._pipeline(name) as pipeline:
                return await asyncio.to_thread(question, pipeline)

    async def slots(self, http: HTTPRequest, body: bytes) -> Json:
        """One slot for each loaded model: requests of one model come in turn."""
        found = []
        for number, resident in enumerate(self._service.residents.loaded.values()):
            if (pipeline := resident.pipeline) is not None:
                found.append(
                    {
                        "id": number,
                        "model": resident.offer.name,
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
        slot = whole_number(number)
        if slot is None or slot >= len(names):
            raise BadRequest(f"slot: got {number!r:.40}; allowed: 0 to {len(names) - 1}", param="id_slot")
        path = slot_files.path_of(read(body, SlotRequest, empty=True).filename) if action != "erase" else None
        resident = await self._service.residents.take(names[slot], None)
        try:
            began = perf_counter()
            head: dict[str, Any] = {"id_slot": slot}
            last_of, sequences = resident.worker.last, self._service.residents.sequences
            client = wire.client_of(http)

            def erase(pipeline: Pipeline) -> int:
                last_of.pop(client, None)
                return slot_files.erase(pipeline)

            if path is None:
                return Json(head | {"n_erased": await asyncio.wrap_future(resident.worker.call(erase))})

            def save(pipeline: Pipeline) -> slot_files.Moved:
                """What this client used last, if another one came since."""
                if last := last_of.get(client):
                    kind, tokens = last
                    sequences.bring(pipeline, tokens, kind)
                return slot_files.save(pipeline, path)

            def restore(pipeline: Pipeline) -> slot_files.Moved:
                sequences.bring(pipeline, (0,), "completion")  # files the rows that go now
                moved = slot_files.restore(pipeline, path)
                last_of[client] = "completion", (*pipeline.target.cache.tokens, 0)  # all but the last may be in a cache
                last_of.move_to_end(client)
                return moved

            moved = await asyncio.wrap_future(resident.worker.call(save if action == "save" else restore))
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


def _most_tokens(pipeline: Pipeline) -> int:
    return _CONTEXTS * pipeline.target.cache.capacity


def _piece(pipeline: Pipeline, token: int) -> str:
    """The text of a token. A part of a character becomes U+FFFD."""
    return str(pipeline.tokenizer.engine.decode([token], skip_special_tokens=False))
