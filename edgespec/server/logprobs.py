"""Log probabilities as clients read them, sent with the text that their tokens begin in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from edgespec.generation import Generation
from edgespec.server.fields import described
from edgespec.server.refusals import BadRequest
from edgespec.server.service import Answer
from edgespec.text.token_bytes import TokenBytes
from edgespec.text.tokenizer import Detokenizer
from edgespec.types import TokenLogprobs

_MOST = 20
"""alternatives of a token, as OpenAI allows"""
Alternatives = Annotated[int | None, described(minimum=0, maximum=_MOST)]
"""the field that asks for them"""
_LEAST = -9999.0
"""OpenAI's number for a token that cannot come: JSON has no infinity"""


def checked(alternatives: int, name: str) -> int:
    """Raises BadRequest. name: of the field that holds the number."""
    if not 0 <= alternatives <= _MOST:
        raise BadRequest(f"{name}: got {alternatives}; allowed: 0 to {_MOST}", param=name)
    return alternatives


def asked_for(logprobs: bool | None, top_logprobs: int | None) -> int | None:
    """How many alternatives a chat asks for, as OpenAI and Ollama spell it. Raises BadRequest."""
    alternatives = checked(top_logprobs or 0, "top_logprobs")
    if alternatives and not logprobs:
        raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    return alternatives if logprobs else None


@dataclass(frozen=True)
class _Token:
    token: int
    spelling: bytes
    logprob: float

    @property
    def text(self) -> str:
        """A part of a character is spelled out, so that no two tokens look alike."""
        try:
            return self.spelling.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.spelling)

    def entry(self) -> dict[str, Any]:
        return {"id": self.token, "token": self.text, "bytes": list(self.spelling), "logprob": self.logprob}


@dataclass(frozen=True)
class Scored:
    """A token of an answer. offset: where its text begins, in characters. top: its alternatives."""

    chosen: _Token
    top: tuple[_Token, ...]
    offset: int


class LogprobScanner:
    """Of one answer. A stop token, and what a stop string cuts off, begins in no text, so it is left out."""

    def __init__(self, answer: Answer) -> None:
        tokenizer = answer.pipeline.tokenizer
        self._detokenizer, self._bytes = Detokenizer(tokenizer), TokenBytes(tokenizer)
        self._ends = frozenset() if answer.request.ignore_eos else answer.pipeline.stop_ids
        self._held: deque[Scored] = deque()
        self._read = self._sent = 0

    @classmethod
    def of(cls, answer: Answer) -> LogprobScanner | None:
        """None if the request asks for no log probabilities."""
        return None if answer.request.logprobs is None else cls(answer)

    def push(self, tokens: Iterable[TokenLogprobs], text: str) -> list[Scored]:
        """Those whose text begins in what was sent so far. text: the next piece of it."""
        for each in tokens:
            if each.token in self._ends:
                continue
            top = tuple(self._token(token, logprob) for token, logprob in each.top)
            self._held.append(Scored(self._token(each.token, each.logprob), top, self._read))
            self._read += len(self._detokenizer.push(each.token))
        self._sent += len(text)
        found = []
        while self._held and self._held[0].offset < self._sent:
            found.append(self._held.popleft())
        return found

    def whole(self, result: Generation) -> list[Scored]:
        return self.push(result.logprobs or (), result.text)

    def _token(self, token: int, logprob: float) -> _Token:
        return _Token(token, self._bytes.of(token), max(logprob, _LEAST))


def entries(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """As OpenAI's chats, llama.cpp and Ollama have them."""
    return [each.chosen.entry() | {"top_logprobs": [other.entry() for other in each.top]} for each in scored]


def columns(scored: Sequence[Scored]) -> dict[str, Any]:
    """As OpenAI's completions have them. The chosen token is among its alternatives."""
    return {
        "tokens": [each.chosen.text for each in scored],
        "token_logprobs": [each.chosen.logprob for each in scored],
        "top_logprobs": [{other.text: other.logprob for other in (*each.top, each.chosen)} for each in scored],
        "text_offset": [each.offset for each in scored],
    }
