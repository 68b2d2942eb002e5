"""The routes of the chat page: its files at ``/``, its chats under ``/app``.

An answer is written into the store while it streams, at most every 250 ms: a kill loses no more than that. Where the
page is gone the answer ends at the next round, and what was written by then stays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request as HTTPRequest
from starlette.routing import BaseRoute, Route

from edgespec.explain import explain
from edgespec.server import figures, wire
from edgespec.server.chat import exchange, picker
from edgespec.server.chat.fields import Options, kept, options_of
from edgespec.server.chat.store import Chat, NoChat, NotOpened, Store, Turn
from edgespec.server.openai_shapes import shape_error
from edgespec.server.refusals import BadRequest, NoModel, Refusal, Unavailable
from edgespec.server.schema import Chat as ChatPrompt
from edgespec.server.schema import Chunk, Request
from edgespec.server.service import Answer, Service
from edgespec.server.stderr import reported
from edgespec.server.wire import Endpoint, Json, Streamed

T = TypeVar("T")
WRITE_S = 0.25
"""between two writes of an answer that streams"""
_ANSWERS = 100
"""of the newest, whose speed is shown: it changes with what else runs"""
MOST_IMPORT = 256 << 20
"""bytes of a file of chats: an export of them all may be longer than any prompt"""
FILES = {"": "index.html", "app.js": "app.js", "app.css": "app.css"}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_POLICY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class NoSuchChat(Refusal):
    status, code = 404, "not_found"


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """All fields that a request of the page may have."""

    title: str | None = None
    pinned: bool | None = None
    system: str | None = None
    options: dict[str, Any] | None = None
    leaf: int | None = None
    parent: int | None = None
    content: str | None = None
    files: list[dict[str, str]] = msgspec.field(default_factory=list)
    deleted: bool | None = None


class ChatPage:
    """path: of the file of chats, which is opened at the first request."""

    def __init__(self, service: Service, path: Path) -> None:
        self._service, self._path = service, path
        self._writer = ThreadPoolExecutor(1, "edgespec-chats")  # one thread has the store
        self._opened: Store | None = None

    def routes(self) -> list[BaseRoute]:
        table: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", "/app/state", self._state),
            ("GET", "/app/models", self._models),
            ("POST", "/app/models/{name}/download", self._download),
            ("POST", "/app/models/{name}/pause", self._pause),
            ("GET", "/app/chats", self._list),
            ("POST", "/app/chats", self._create),
            ("GET", "/app/chats/{chat}", self._show),
            ("PATCH", "/app/chats/{chat}", self._change),
            ("POST", "/app/chats/{chat}/turns", self._ask),
            ("PUT", "/app/chats/{chat}/turns/{turn:int}", self._edit),
            ("POST", "/app/chats/{chat}/answer", self._answer),
            ("GET", "/app/chats/{chat}/export", self._export),
            ("GET", "/app/export", self._export_all),
        ]
        pages = [Route(f"/{name}", Endpoint(_file(file), shape_error)) for name, file in FILES.items()]
        return [
            *pages,
            *(Route(path, Endpoint(do, shape_error), methods=[method]) for method, path, do in table),
            Route(
                "/app/import",
                Endpoint(self._import, shape_error, most_body=MOST_IMPORT),
                methods=["POST"],
            ),
        ]

    def close(self) -> None:
        """All that was to be kept is in the file then."""
        if self._opened is not None:
            self._writer.submit(self._opened.close)
        self._writer.shutdown()

    async def _do(self, work: Callable[[Store], T]) -> T:
        """Use the store on its own thread."""

        def run() -> T:
            if self._opened is None:
                try:
                    self._opened = Store(self._path)
                except NotOpened as error:
                    raise Unavailable(str(error), retry_after_s=1.0) from error
            try:
                return work(self._opened)
            except NoChat as error:
                raise NoSuchChat(str(error)) from error

        return await asyncio.get_running_loop().run_in_executor(self._writer, run)

    async def _state(self, http: HTTPRequest, body: bytes) -> Json:
        residents = self._service.residents
        models = []
        for offer in residents.offers.values():
            resident = residents.loaded.get(offer.name)
            pipeline = resident.pipeline if resident else None
            models.append(
                {
                    "name": offer.name,
                    "size_bytes": offer.size_bytes,
                    "loaded": pipeline is not None,
                    "exact": pipeline is not None and pipeline.target.capabilities.numerics == "exact",
                    "context_length": pipeline.target.cache.capacity if pipeline else offer.context_of(),
                }
            )
        mended = await self._do(lambda store: store.mended)
        return Json({"models": models, "mended": mended, "ready": self._service.is_ready})

    async def _models(self, http: HTTPRequest, body: bytes) -> Json:
        """Those with a short name: what each asks of the user and the machine."""
        speeds = picker.Speeds(await self._do(lambda store: store.facts(_ANSWERS)))
        return Json(picker.listed(self._service, speeds))

    async def _download(self, http: HTTPRequest, body: bytes) -> Json:
        """Begin to fetch a model, or go on; ``_models`` tells how far it is."""
        name = http.path_params["name"]
        if self._service.fetch is None:
            raise NoModel(f"no model {name!r} to fetch", param="name")
        self._service.fetches.begin(name, self._service.fetch(name, mirror=http.query_params.get("from") == "mirror"))
        return Json({}, 202)

    async def _pause(self, http: HTTPRequest, body: bytes) -> Json:
        self._service.fetches.pause(http.path_params["name"])
        return Json({}, 202)

    async def _list(self, http: HTTPRequest, body: bytes) -> Json:
        text = http.query_params.get("q", "").strip()
        if not text:
            return Json([_chat(chat) for chat in await self._do(lambda store: store.listed())])
        hits = await self._do(lambda store: store.search(text))
        return Json([_chat(chat) | {"place": place} for chat, place in hits])

    async def _create(self, http: HTTPRequest, body: bytes) -> Json:
        asked = _read(body)
        options = kept(_options(asked.options or {}))
        return Json(_chat(await self._do(lambda store: store.create(options, asked.title or ""))), 201)

    async def _show(self, http: HTTPRequest, body: bytes) -> Json:
        key = http.path_params["chat"]
        chat, turns = await self._do(lambda store: (store.chat(key), store.turns(key)))
        return Json(_chat(chat) | {"turns": [asdict(turn) for turn in turns]})

    async def _change(self, http: HTTPRequest, body: bytes) -> Json:
        key, asked = http.path_params["chat"], _read(body)
        fields = {name: getattr(asked, name) for name in ("title", "pinned", "system", "options", "leaf")}
        if asked.options is not None:
            fields["options"] = kept(_options(asked.options))

        def change(store: Store) -> Chat:
            if asked.deleted is not None:
                (store.delete if asked.deleted else store.restore)(key)
            return store.change(key, **{name: value for name, value in fields.items() if value is not None})

        return Json(_chat(await self._do(change)))

    async def _ask(self, http: HTTPRequest, body: bytes) -> Json:
        key, asked = http.path_params["chat"], _read(body)
        files = [{"name": file.get("name", ""), "text": file.get("text", "")} for file in asked.files]
        content = asked.content or ""
        if not content.strip() and not files:
            raise BadRequest("content: empty; allowed: a text, or files", param="content")

        def add(store: Store) -> Turn:
            if not store.chat(key).title:
                store.change(key, title=exchange.title_of(content or files[0]["name"]))
            return store.add(key, asked.parent, "user", content, files)

        return Json(asdict(await self._do(add)), 201)

    async def _edit(self, http: HTTPRequest, body: bytes) -> Json:
        """The model's words, put right by the user, in a branch of their own."""
        key, number, asked = http.path_params["chat"], http.path_params["turn"], _read(body)

        def edit(store: Store) -> Turn:
            old = store.branch(key, number)[-1]
            turn = store.add(key, old.parent, old.role, asked.content or "", old.files)
            if old.role == "assistant":
                store.write(turn.id, turn.content, {"edited": True})
            return turn

        return Json(asdict(await self._do(edit)), 201)

    async def _answer(self, http: HTTPRequest, body: bytes) -> Streamed:
        key, asked = http.path_params["chat"], _read(body)
        if asked.parent is None:
            raise BadRequest("parent: missing; allowed: the turn to answer", param="parent")
        parent = asked.parent
        chat, branch = await self._do(lambda store: (store.chat(key), store.branch(key, parent)))
        answer = await self._service.answer(_request(chat, branch))
        try:
            turn = await self._do(lambda store: store.add(key, parent, "assistant", ""))
        except BaseException:
            answer.close()
            raise
        return Streamed(self._events(answer, turn), wire.SSE, answer.close)

    async def _events(self, answer: Answer, turn: Turn) -> AsyncGenerator[bytes, None]:
        """Parts of the answer for the page, written into the store on the way, and its end in any case."""
        text, drafted, written, facts = "", _Drafted(), time.monotonic(), None
        try:
            yield wire.event({"turn": turn.id, "parent": turn.parent})
            async with aclosing(wire.pinged(answer)) as chunks:
                async for chunk in chunks:
                    if chunk is None:
                        yield wire.PING
                        continue
                    text += chunk.text
                    drafted.add(chunk)
                    if chunk.result is not None:
                        facts = _facts(answer, chunk) | {"drafted": drafted.spans}
                        break
                    yield wire.event(_part(chunk))
                    if time.monotonic() - written >= WRITE_S:
                        await self._do(partial(Store.write, turn=turn.id, content=text))
                        written = time.monotonic()
            yield wire.event({"text": chunk.text, "rounds": figures.rounds(chunk.rounds)} if chunk else {})
            await self._do(lambda store: store.write(turn.id, text, facts or {}))
            yield wire.event({"facts": facts})
        except Exception as error:
            facts = {"error": reported(error).message, "drafted": drafted.spans}
            yield wire.event({"facts": facts})
        finally:
            answer.close()
            # Also where this task is cancelled: the store's thread writes on.
            last = facts or {"stopped": True, "drafted": drafted.spans}
            self._writer.submit(self._end, turn.id, text, last)

    def _end(self, turn: int, text: str, facts: Mapping[str, Any]) -> None:
        if self._opened is not None:
            self._opened.write(turn, text, facts)

    async def _export(self, http: HTTPRequest, body: bytes) -> Json:
        key = http.path_params["chat"]
        if http.query_params.get("format") == "markdown":

            def as_markdown(store: Store) -> str:
                chat = store.chat(key)
                return exchange.markdown(chat, store.branch(key, chat.leaf) if chat.leaf is not None else [])

            return _attached(await self._do(as_markdown), "chat.md", "text/markdown")
        found = await self._do(lambda store: exchange.jsonl(store, [store.chat(key)]))
        return _attached(found, "chat.jsonl", "application/jsonl")

    async def _export_all(self, http: HTTPRequest, body: bytes) -> Json:
        found = await self._do(lambda store: exchange.jsonl(store, store.listed()))
        return _attached(found, "chats.jsonl", "application/jsonl")

    async def _import(self, http: HTTPRequest, body: bytes) -> Json:
        try:
            text = body.decode("utf-8-sig")  # editors on Windows begin a file with a mark
            count = await self._do(lambda store: exchange.read_in(store, text))
        except (UnicodeDecodeError, exchange.NotChats) as error:
            raise BadRequest(str(error)) from error
        return Json({"chats": count}, 201)


class _Drafted:
    """Which characters of an answer came from whose accepted drafts: spans of (characters, drafter or "")."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, str]] = []

    def add(self, chunk: Chunk) -> None:
        accepted = next((round_.drafter for round_ in chunk.rounds if round_.accepted), "")
        if not chunk.text:
            return
        if self.spans and self.spans[-1][1] == accepted:
            self.spans[-1] = (self.spans[-1][0] + len(chunk.text), accepted)
        else:
            self.spans.append((len(chunk.text), accepted))


def _facts(answer: Answer, chunk: Chunk) -> dict[str, Any]:
    """What the page shows of a finished answer."""
    result = chunk.result
    assert result is not None
    plain_s, speed = chunk.plain_s, figures.timings(result)
    return {
        "model": answer.model,
        "finish": result.finish_reason,
        "timings": speed,
        "speedup": plain_s * speed["predicted_per_second"] if plain_s and speed["predicted_per_second"] else None,
        "why": explain(result.stats, plain_s)[:3],
        "context": result.stats.prompt_tokens + len(result.token_ids),
        "context_length": answer.pipeline.target.cache.capacity,
        "exact": answer.pipeline.target.capabilities.numerics == "exact",
        "weights_bytes": getattr(answer.pipeline.target, "weights_bytes", 0),
    }


def _part(chunk: Chunk) -> dict[str, Any]:
    part: dict[str, Any] = {"text": chunk.text, "rounds": figures.rounds(chunk.rounds)}
    return part | ({"read": chunk.read} if chunk.read else {})


def _request(chat: Chat, branch: list[Turn]) -> Request:
    options = _options(chat.options)
    messages = [{"role": "system", "content": chat.system}] if chat.system else []
    messages += [{"role": turn.role, "content": _with_files(turn)} for turn in branch]
    length = options.max_tokens
    return Request(
        prompt=ChatPrompt(messages),
        kind="chat",
        model=options.model,
        key=f"chat {chat.id}",
        sampling=options.sampling(),
        max_new_tokens=length,
        is_unlimited=length is None,
        shows_progress=True,
    )


def _with_files(turn: Turn) -> str:
    files = [f"{file['name']}:\n```\n{file['text']}\n```" for file in turn.files]
    return "\n\n".join([*files, turn.content])


def _options(options: Mapping[str, Any]) -> Options:
    try:
        return options_of(options)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadRequest(f"options: {error}", param="options") from error


def _read(body: bytes) -> _Body:
    try:
        return msgspec.json.decode(body or b"{}", type=_Body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadRequest(f"body: {error}") from error


def _chat(chat: Chat) -> dict[str, Any]:
    return asdict(chat)


def _attached(text: str, name: str, media_type: str) -> Json:
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Json(text.encode(), headers=headers, media_type=f"{media_type}; charset=utf-8")


def _file(name: str) -> wire.Handle:
    path = Path(__file__).with_name("page") / name

    async def send(http: HTTPRequest, body: bytes) -> Json:
        return Json(path.read_bytes(), headers=_POLICY, media_type=_TYPES[path.suffix])

    return send
