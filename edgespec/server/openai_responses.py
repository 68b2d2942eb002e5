"""OpenAI's route ``/v1/responses``: a text or a conversation in, one answer out. No answer is kept."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from time import time
from typing import Annotated, Any

import msgspec
from starlette.requests import Request as HTTPRequest

from edgespec.generation import Generation
from edgespec.server import wire
from edgespec.server.answer_parts import Parts, PartScanner
from edgespec.server.fields import Common, described, read
from edgespec.server.messages import Message
from edgespec.server.openai_shapes import shape_error
from edgespec.server.refusals import BadRequest, Refusal
from edgespec.server.schema import Chat
from edgespec.server.service import Answer, Service
from edgespec.server.stderr import reported
from edgespec.server.wire import Json, Streamed
from edgespec.text.messages import plain_messages

Event = dict[str, Any]
_TEXTS = ("input_text", "output_text", "text")


class TextOptions(msgspec.Struct):
    format: dict[str, Any] | None = None


class ResponsesRequest(Common, kw_only=True):
    input: Annotated[str | list[Message], described(minItems=1)]
    instructions: str | None = None
    previous_response_id: Annotated[str | None, described(enum=[None])] = None
    text: TextOptions | None = None
    tools: Annotated[list[dict[str, Any]] | None, described(maxItems=0)] = None

    def messages(self) -> list[dict[str, Any]]:
        """Raises BadRequest."""
        if self.previous_response_id is not None:
            raise BadRequest(
                "previous_response_id: no answer is kept here; send the conversation as input",
                param="previous_response_id",
            )
        if self.tools:
            raise BadRequest("tools are not supported here; use /v1/chat/completions", param="tools")
        given = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        found = [
            _message(item, f"input[{index}]") for index, item in enumerate(given) if item.get("type") != "reasoning"
        ]
        if self.instructions:
            found.insert(0, {"role": "system", "content": self.instructions})
        return plain_messages(found)

    @property
    def response_format(self) -> dict[str, Any] | None:
        """As chats spell it: what describes the schema stands one level lower there."""
        given = self.text.format if self.text else None
        if given is None or given.get("type") != "json_schema":
            return given
        return {"type": "json_schema", "json_schema": {name: each for name, each in given.items() if name != "type"}}


def _message(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An item of the input as a message of a chat. Raises BadRequest."""
    if (kind := item.get("type", "message")) != "message":
        raise BadRequest(f"{where}: items of type {kind!r} are not supported; allowed: message", param="input")
    content = item.get("content")
    if isinstance(content, list):
        content = [
            {**part, "type": "text"} if isinstance(part, Mapping) and part.get("type") in _TEXTS else part
            for part in content
        ]
    return {"role": item.get("role"), "content": content}


class Responses:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def respond(self, http: HTTPRequest, body: bytes) -> Json | Streamed:
        asked = read(body, ResponsesRequest)
        chat = Chat(asked.messages())
        answer = await self._service.answer(asked.request(http, chat, "chat", asked.response_format))
        response = _Response(asked, answer)
        if asked.stream:
            return Streamed(_events(answer, response), wire.SSE, answer.close)
        try:
            result = await answer.whole()
        finally:
            answer.close()
        for _ in response.write(PartScanner(answer.prepared).whole(result.text)):
            pass
        for _ in response.end(result):
            pass
        return Json(response.shown())


async def _events(answer: Answer, response: _Response) -> AsyncGenerator[bytes, None]:
    scan = PartScanner(answer.prepared)
    try:
        for each in response.begin():
            yield wire.event(each, each["type"])
        async with aclosing(wire.pinged(answer)) as chunks:
            async for chunk in chunks:
                if chunk is None:
                    yield wire.PING
                    continue
                for each in response.write(scan.push(chunk.text)):
                    yield wire.event(each, each["type"])
                if chunk.result is not None:
                    for each in (*response.write(scan.flush()), *response.end(chunk.result)):
                        yield wire.event(each, each["type"])
    except Exception as error:
        yield wire.event(response.failed(reported(error)), "error")
    finally:
        answer.close()


class _Response:
    """The object of an answer, and the events by which it comes to be.

    It has an item of reasoning, if there is any, and a message. Each item has one text.
    """

    def __init__(self, asked: ResponsesRequest, answer: Answer) -> None:
        self._asked, self._model = asked, answer.model
        self._id, self._created = f"resp_{secrets.token_hex(12)}", int(time())
        self._output: list[dict[str, Any]] = []
        self._status = "in_progress"
        self._result: Generation | None = None
        self._sent = 0

    def begin(self) -> Iterator[Event]:
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self.shown())

    def write(self, found: Parts) -> Iterator[Event]:
        for kind, text in (("reasoning", found.reasoning), ("message", found.content)):
            if text:
                if not self._output or self._output[-1]["type"] != kind:
                    yield from self._close()
                    yield from self._open(kind)
                part = self._output[-1]["content"][0]
                part["text"] += text
                yield self._of_part("delta", delta=text, **_unscored(part))

    def end(self, result: Generation) -> Iterator[Event]:
        if not any(item["type"] == "message" for item in self._output):  # an answer without a text is a message, too
            yield from self._close()
            yield from self._open("message")
        yield from self._close()
        self._result = result
        self._status = "incomplete" if result.finish_reason == "length" else "completed"
        yield self._event(f"response.{self._status}", response=self.shown())

    def failed(self, why: Refusal) -> Event:
        """The last event of a stream that ends too early. Clients read the error in the event or in its own object."""
        found = shape_error(why)
        about = {name: each for name, each in found["error"].items() if name != "type"}
        return self._event("error", **about, **found)

    def shown(self) -> dict[str, Any]:
        asked, sampling = self._asked, self._asked.sampling
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.length,
            "metadata": {},
            "model": self._model,
            "output": self._output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": (asked.text and asked.text.format) or {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": sampling.top_p,
            "usage": _usage(self._result),
        }

    def _open(self, kind: str) -> Iterator[Event]:
        own: dict[str, Any] = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
        item = {"id": f"{kind}_{secrets.token_hex(12)}", "type": kind, "status": "in_progress", "content": []}
        self._output.append(item | own)
        yield self._of_item("response.output_item.added", item=self._output[-1])
        texts: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        part = texts if kind == "reasoning" else texts | {"type": "output_text", "annotations": [], "logprobs": []}
        self._output[-1]["content"].append(part)
        yield self._of_item("response.content_part.added", content_index=0, part=part)

    def _close(self) -> Iterator[Event]:
        if not self._output:
            return
        item = self._output[-1]
        part = item["content"][0]
        yield self._of_part("done", text=part["text"], **_unscored(part))
        yield self._of_item("response.content_part.done", content_index=0, part=part)
        item["status"] = "completed"
        yield self._of_item("response.output_item.done", item=item)

    def _of_part(self, name: str, **content: Any) -> Event:
        kind = self._output[-1]["content"][0]["type"]
        return self._of_item(f"response.{kind}.{name}", content_index=0, **content)

    def _of_item(self, name: str, **content: Any) -> Event:
        place: dict[str, Any] = {"output_index": len(self._output) - 1}
        if "item" not in content:
            place["item_id"] = self._output[-1]["id"]
        return self._event(name, **place, **content)

    def _event(self, name: str, **content: Any) -> Event:
        self._sent += 1
        return {"type": name, "sequence_number": self._sent - 1, **content}


def _unscored(part: Mapping[str, Any]) -> dict[str, Any]:
    """Clients read log probabilities in every event of a message's text."""
    return {"logprobs": []} if part["type"] == "output_text" else {}


def _usage(result: Generation | None) -> dict[str, Any] | None:
    if result is None:
        return None
    read, written = result.stats.prompt_tokens, len(result.token_ids)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": result.stats.reused_tokens},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }
