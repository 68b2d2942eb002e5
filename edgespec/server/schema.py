"""One request and its answer, as the engine side sees them. A wire format translates to a ``Request`` and from
``Chunk``; it knows no engine, and the engine knows no format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edgespec.generation import Generation
from edgespec.sampling_params import SamplingParams
from edgespec.types import Round, TokenLogprobs

Kind = Literal["chat", "completion"]
"""A completion never takes the memory of a chat (see ``residents`` and ``sequences``)."""


@dataclass(frozen=True)
class Chat:
    """A conversation to answer.

    tools: as OpenAI writes them. tool_choice: "auto", "none", "required", or "function:" and the name of one.
    variables: further ones of the chat template. reasons: the model has to be one that reasons.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    variables: Mapping[str, Any] = field(default_factory=dict)
    reasons: bool = False


@dataclass(frozen=True)
class Text:
    """A text to continue as it is."""

    text: str


@dataclass(frozen=True)
class Tokens:
    """Token ids to continue as they are."""

    ids: Sequence[int]


@dataclass(frozen=True)
class Infill:
    """A hole to fill.

    files: names and texts of other files, the most important one last. typed: what was typed behind the prefix since
    the suffix was read, also whole lines. path: of the file with the hole. indent, line_time_s: see
    ``text.hole_end.LineRules``.
    """

    prefix: str
    suffix: str
    files: Sequence[tuple[str, str]] = ()
    typed: str = ""
    path: str | None = None
    indent: int = 0
    line_time_s: float | None = None


Prompt = Chat | Text | Tokens | Infill


@dataclass(frozen=True, kw_only=True)
class Request:
    """model: None is the first one. key: a newer request with the same key ends this one; None: nothing ends it.

    follows: it asks for a further answer to what was asked before, and so is as old as that. max_new_tokens: None as in
    ``Pipeline.stream_tokens``; 0 only reads the prompt, and ends no other request. is_unlimited: the text may be as
    long as the context has room for. time_limit_s: the text ends there, as at a length. keep_alive_s: how long the
    model stays loaded after it; None: as the server was told; below 0: for good. logprobs: as in
    ``Pipeline.stream_tokens``. shows_progress: chunks say how much of the prompt is read. prompt_field: what the client
    calls its prompt.
    """

    prompt: Prompt
    kind: Kind
    model: str | None = None
    key: str | None = None
    follows: bool = False
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int | None = None
    is_unlimited: bool = False
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    response_format: Mapping[str, Any] | None = None
    num_draft_tokens: int | None = None
    time_limit_s: float | None = None
    keep_alive_s: float | None = None
    prompt_field: str = "prompt"
    logprobs: int | None = None
    shows_progress: bool = False
    client: str = ""
    """who asks, see ``wire.client_of``"""

    @property
    def writes(self) -> bool:
        return self.max_new_tokens != 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an answer.

    text: a piece of it, maybe empty. rounds: those that came since the last chunk; they wrote this piece, and what is
    held back of it. logprobs: of the tokens that came since the last chunk. read: tokens of the prompt that are read,
    and all of them. result: of the whole answer, in its last chunk. plain_s: with it, the expected time per token
    without drafts, if costs were measured.
    """

    text: str = ""
    rounds: tuple[Round, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    read: tuple[int, int] | None = None
    result: Generation | None = None
    plain_s: float | None = None
