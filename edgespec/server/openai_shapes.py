"""How OpenAI's completions look: what a request for one may hold, and its answer, whole and in parts."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import time
from typing import Annotated, Any

import msgspec

from edgespec.generation import Generation
from edgespec.server import figures
from edgespec.server.answer_parts import Parts, PartScanner
from edgespec.server.fields import Common, described
from edgespec.server.logprobs import Alternatives, LogprobScanner, Scored, asked_for, checked, columns, entries
from edgespec.server.messages import Message
from edgespec.server.refusals import BadRequest, Refusal
from edgespec.server.schema import Chunk
from edgespec.server.service import Answer
from edgespec.server.several import Count
from edgespec.text.tool_calls import ToolCall


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class ChatRequest(Common, kw_only=True):
    messages: Annotated[list[Message], described(minItems=1)]
    n: Count = None
    logprobs: bool | None = None
    top_logprobs: Alternatives = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def alternatives(self) -> int | None:
        return asked_for(self.logprobs, self.top_logprobs)


class CompletionRequest(Common, kw_only=True):
    prompt: Annotated[str | list[int | str], described(minLength=1, minItems=1)]
    n: Count = None
    logprobs: Alternatives = None
    suffix: str | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None

    @property
    def alternatives(self) -> int | None:
        if self.logprobs is not None and self.suffix:
            raise BadRequest("logprobs: not of a text before a suffix", param="logprobs")
        return None if self.logprobs is None else checked(self.logprobs, "logprobs")


def shape_error(why: Refusal) -> dict[str, Any]:
    return {"error": {"message": why.message, "type": why.kind, "param": why.param, "code": why.code}}


class Shape:
    """How one kind of completion looks: whole, and in parts."""

    prefix, object, part_object = "", "", ""

    def __init__(self, asked: ChatRequest | CompletionRequest) -> None:
        self.model = ""
        self._id = self.prefix + secrets.token_hex(12)
        self._created = int(time())
        self._rounds, self._progress = asked.edgespec_rounds, asked.return_progress
        self._scores: LogprobScanner | None = None
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

    def _part(
        self, index: int, content: Mapping[str, Any], finish: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}
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

    def _scored(self, chunk: Chunk) -> Any:
        """The log probabilities that go with a part, if there are any."""
        placed = self._scores.push(chunk.logprobs, chunk.text) if self._scores else None
        return self._logprobs(placed) if placed else None

    def _scored_whole(self, answer: Answer, result: Generation) -> Any:
        self._scores = LogprobScanner.of(answer)
        return self._logprobs(self._scores.whole(result)) if self._scores else None

    def _logprobs(self, placed: Sequence[Scored]) -> Any:
        raise NotImplementedError

    def first(self, index: int, answer: Answer) -> dict[str, Any]:
        """The part before all text. Those that follow are of this answer."""
        raise NotImplementedError

    def parts(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        raise NotImplementedError

    def choice(self, index: int, answer: Answer, result: Generation) -> dict[str, Any]:
        raise NotImplementedError


class ChatShape(Shape):
    prefix, object, part_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def first(self, index: int, answer: Answer) -> dict[str, Any]:
        self._scan, self._calls, self._scores = PartScanner(answer.prepared), 0, LogprobScanner.of(answer)
        return self._part(index, {"delta": {"role": "assistant", "content": ""}})

    def parts(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        found = self._scan.push(chunk.text)
        if chunk.result is not None:
            last = self._scan.flush()
            found = Parts(found.content + last.content, found.reasoning + last.reasoning, found.calls + last.calls)
        parts, scored = [], self._scored(chunk)
        if found or scored or chunk.rounds or (self._progress and chunk.read):
            delta = self._delta(found)
            if delta or scored or self._rounds or chunk.read:
                part = self._part(index, {"delta": delta}, logprobs=scored)
                parts.append(self._noted(part, replace(chunk, result=None)))
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
        scored = self._scored_whole(answer, result)
        return {"index": index, "message": message, "logprobs": scored, "finish_reason": finish}

    def _logprobs(self, placed: Sequence[Scored]) -> Any:
        return {"content": entries(placed), "refusal": None}


def _called(call: tuple[str, ToolCall]) -> dict[str, Any]:
    name, arguments = call[1].name, call[1].arguments
    return {"id": call[0], "type": "function", "function": {"name": name, "arguments": arguments}}


class TextShape(Shape):
    prefix, object, part_object = "cmpl-", "text_completion", "text_completion"

    def first(self, index: int, answer: Answer) -> dict[str, Any]:
        self._scores = LogprobScanner.of(answer)
        return self._part(index, {"text": ""})

    def parts(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        if not (chunk.text or chunk.result or (self._progress and chunk.read)):
            return []
        finish = chunk.result.finish_reason if chunk.result else None
        return [self._noted(self._part(index, {"text": chunk.text}, finish, self._scored(chunk)), chunk)]

    def choice(self, index: int, answer: Answer, result: Generation) -> dict[str, Any]:
        scored = self._scored_whole(answer, result)
        return {"index": index, "text": result.text, "logprobs": scored, "finish_reason": result.finish_reason}

    def _logprobs(self, placed: Sequence[Scored]) -> Any:
        return columns(placed)
