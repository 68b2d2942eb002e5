"""From a request to the tokens of its prompt. It needs the tokenizer and the template of a loaded model, no engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgespec.pipeline import Pipeline
from edgespec.server.refusals import BadRequest, NotOffered
from edgespec.server.schema import Chat, Infill, Request, Text, Tokens
from edgespec.text.response_format import grammar_of


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """tokens: of the prompt. response_format: of the answer, the request's own or that of a tool."""

    tokens: list[int]
    response_format: Mapping[str, Any] | None = None


def prepare(request: Request, pipeline: Pipeline) -> Prepared:
    """Raises EdgespecError for what this model cannot do, ContextFull for a prompt that is too long."""
    match request.prompt:
        case Chat(messages, variables=variables):
            tokens = pipeline.chat_tokens(messages, **variables)
        case Text(text):
            tokens = pipeline.text_tokens(text)
        case Tokens(ids):
            tokens = list(ids)
        case Infill():
            raise NotOffered("this server fills no holes yet")
    if not tokens:
        raise BadRequest("prompt is empty", param="prompt")
    pipeline.require_prompt(tokens)
    pipeline.require_k(request.num_draft_tokens)
    grammar_of(request.response_format, ignore_eos=request.ignore_eos)
    return Prepared(tokens=tokens, response_format=request.response_format)
