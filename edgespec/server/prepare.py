"""From a request to the tokens of its prompt. It needs the tokenizer and the template of a loaded model, no engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgespec.pipeline import DEFAULT_HOLE_TOKENS, Pipeline
from edgespec.server.refusals import BadRequest
from edgespec.server.schema import Chat, Infill, Request, Text, Tokens
from edgespec.text.infill import InfillPrompt
from edgespec.text.response_format import grammar_of


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """tokens: of the prompt. response_format: of the answer, the request's own or that of a tool. hole: what the prompt
    was made of, if it is that of a hole."""

    tokens: list[int]
    response_format: Mapping[str, Any] | None = None
    hole: InfillPrompt | None = None


def prepare(request: Request, pipeline: Pipeline) -> Prepared:
    """Raises EdgespecError for what this model cannot do, ContextFull for a prompt that is too long."""
    hole: InfillPrompt | None = None
    match request.prompt:
        case Chat(messages, variables=variables):
            tokens = pipeline.chat_tokens(messages, **variables)
        case Text(text):
            tokens = pipeline.text_tokens(text)
        case Tokens(ids):
            tokens = list(ids)
        case Infill() as asked:
            hole = _hole(asked, request, pipeline)
            tokens = hole.tokens
    if not tokens:
        raise BadRequest("prompt is empty", param="prompt")
    pipeline.require_prompt(tokens)
    pipeline.require_k(request.num_draft_tokens)
    grammar_of(request.response_format, ignore_eos=request.ignore_eos)
    return Prepared(tokens=tokens, response_format=request.response_format, hole=hole)


def _hole(asked: Infill, request: Request, pipeline: Pipeline) -> InfillPrompt:
    length = request.max_new_tokens
    return pipeline.infill_prompt(
        asked.prefix + asked.typed,
        asked.suffix,
        files=asked.files,
        path=asked.path,
        max_new_tokens=DEFAULT_HOLE_TOKENS if length is None else min(length, pipeline.target.cache.capacity // 2),
        indent=asked.indent,
        max_s=asked.line_time_s,
        heal=request.response_format is None and request.max_new_tokens != 0,
    )
