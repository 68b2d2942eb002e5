"""From a request to the tokens of its prompt. It needs the tokenizer and the template of a loaded model, no engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgespec.arguments import require_bias
from edgespec.pipeline import Pipeline
from edgespec.server.refusals import BadRequest
from edgespec.server.schema import Chat, Infill, Request, Text, Tokens
from edgespec.text import reasoning, tool_calls
from edgespec.text.infill import DEFAULT_HOLE_TOKENS, InfillPrompt
from edgespec.text.response_format import grammar_of

_LAST = 4
"""tokens of a prompt: where reasoning is opened in it, that is at its end"""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """tokens: of the prompt. response_format: of the answer, the request's own or that of a tool.

    hole: what the prompt was made of, if it is that of a hole. has_tools: the answer may be calls of tools.
    is_reasoning: the prompt ends within reasoning.
    """

    tokens: list[int]
    response_format: Mapping[str, Any] | None = None
    hole: InfillPrompt | None = None
    has_tools: bool = False
    is_reasoning: bool = False


def prepare(request: Request, pipeline: Pipeline) -> Prepared:
    """Raises EdgespecError for what this model cannot do, ContextFull for a prompt that is too long."""
    hole: InfillPrompt | None = None
    match request.prompt:
        case Chat() as chat:
            return _prepare_chat(chat, request, pipeline)
        case Text(text):
            tokens = pipeline.text_tokens(text)
        case Tokens(ids):
            tokens = list(ids)
        case Infill() as asked:
            hole = _hole(asked, request, pipeline)
            tokens = hole.tokens
    return _checked(Prepared(tokens=tokens, response_format=request.response_format, hole=hole), request, pipeline)


def _checked(prepared: Prepared, request: Request, pipeline: Pipeline) -> Prepared:
    """What else would be found only when it is this request's turn."""
    if not prepared.tokens:
        raise BadRequest("prompt is empty", param="prompt")
    pipeline.require_prompt(prepared.tokens)
    pipeline.require_k(request.num_draft_tokens)
    require_bias(request.sampling, pipeline.target.vocab_size)
    grammar_of(prepared.response_format, ignore_eos=request.ignore_eos)
    return prepared


def _prepare_chat(chat: Chat, request: Request, pipeline: Pipeline) -> Prepared:
    source = pipeline.template.source if pipeline.template else ""
    if chat.reasons and not reasoning.is_known_to(source):
        raise BadRequest(f"{pipeline.bundle.name} does not support thinking", param="think")
    variables, begun, response_format = dict(chat.variables), "", request.response_format
    if tools := _tools(chat, source):
        variables["tools"] = tools
        if chat.tool_choice != "auto":
            if response_format is not None:
                raise BadRequest("tool_choice asks for a call, and response_format for a text", param="tool_choice")
            begun, response_format = tool_calls.forced(source, _chosen(tools, chat.tool_choice))
    tokens = pipeline.chat_tokens(chat.messages, begun=begun, **variables)
    prompt = pipeline.tokenizer.engine.decode(tokens[-_LAST:], skip_special_tokens=False)
    prepared = Prepared(
        tokens=tokens,
        response_format=response_format,
        has_tools=bool(tools),
        is_reasoning=reasoning.is_open(prompt),
    )
    return _checked(prepared, request, pipeline)


def _tools(chat: Chat, template: str) -> list[Mapping[str, Any]]:
    """The tools that the model is shown."""
    if not chat.tools or chat.tool_choice == "none":
        return []
    if not tool_calls.is_known_to(template):
        raise BadRequest("this model's chat template knows no tools", param="tools")
    for index, tool in enumerate(chat.tools):
        function = tool.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRequest(f"tools[{index}]: it names no function", param="tools")
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise BadRequest(f"tools[{index}]: parameters are not a schema", param="tools")
    return list(chat.tools)


def _chosen(tools: list[Mapping[str, Any]], choice: str) -> list[Mapping[str, Any]]:
    if choice == "required":
        return tools
    name = choice.removeprefix("function:")
    chosen = [tool for tool in tools if tool["function"]["name"] == name]
    if not chosen:
        raise BadRequest(f"tool_choice names no tool of this request: {name}", param="tool_choice")
    return chosen


def _hole(asked: Infill, request: Request, pipeline: Pipeline) -> InfillPrompt:
    length = request.max_new_tokens
    return pipeline.infill_prompt(
        asked.prefix + asked.typed,
        asked.suffix,
        files=asked.files,
        path=asked.path,
        anchor=len(asked.prefix) or None,
        max_new_tokens=DEFAULT_HOLE_TOKENS if length is None else min(length, pipeline.target.cache.capacity // 2),
        indent=asked.indent,
        max_s=asked.line_time_s,
        heal=request.response_format is None and request.max_new_tokens != 0,
    )
