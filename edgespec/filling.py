"""Holes in a text: what a pipeline writes at the cursor of an editor, between what stands before it and behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from edgespec.arguments import require_options
from edgespec.generation import Generation, Stream
from edgespec.protocols import Drafter, Model
from edgespec.sampling_params import is_whole, require_whole
from edgespec.text.infill import DEFAULT_HOLE_PROMPT, DEFAULT_HOLE_TOKENS, Files, Infill, InfillPrompt
from edgespec.text.tokenizer import Tokenizer


class Filling(ABC):
    """What fills holes, for a pipeline."""

    target: Model
    tokenizer: Tokenizer

    @abstractmethod
    def stream_tokens(self, prompt: list[int], *args: Any, **options: Any) -> Stream: ...

    def infill(self, prefix: str, suffix: str = "", **options: Any) -> Generation:
        """Like ``stream_infill``, but returns the whole generation."""
        require_options("infill", options, Filling.stream_infill, type(self).stream_tokens)
        stream = self.stream_infill(prefix, suffix, **options)
        for _ in stream:
            pass
        return stream.result

    def stream_infill(
        self,
        prefix: str,
        suffix: str = "",
        *,
        files: Files = (),
        path: str | None = None,
        anchor: int | None = None,
        prompt_tokens: int = DEFAULT_HOLE_PROMPT,
        indent: int = 0,
        max_s: float | None = None,
        max_new_tokens: int = DEFAULT_HOLE_TOKENS,
        **options: Any,
    ) -> Stream:
        """Write the text between ``prefix`` and ``suffix``, as an editor asks at its cursor.

        A model that knows how to fill a hole is shown both. Any other goes on with the prefix, and its text ends where
        it meets the suffix (see ``text.fim``).

        files: other texts to know, as ``{path: text}``, the most important one last. path: of the file with the hole.
        anchor: characters of ``prefix`` that were there when the suffix was read last. The whole lines that were typed
            since stand behind the suffix, so it need not be read again. Few lines; more change nothing.
        prompt_tokens: most tokens of all these. What is nearest to the hole is kept (see ``text.infill``).
        indent: the text ends before a line that is indented by fewer characters. 0 is off.
        max_s: the text ends after so many seconds, but not within its first line.
        Other options: see ``stream_tokens``.
        """
        require_options("stream_infill", options, type(self).stream_tokens)
        hole = self.infill_prompt(
            prefix,
            suffix,
            files=files,
            path=path,
            anchor=anchor,
            prompt_tokens=prompt_tokens,
            indent=indent,
            max_s=max_s,
            max_new_tokens=max_new_tokens,
            heal=options.get("response_format") is None,
        )
        return self.stream_tokens(hole.tokens, max_new_tokens=max_new_tokens, hole=hole, **options)

    def infill_prompt(
        self,
        prefix: str,
        suffix: str,
        *,
        prompt_tokens: int = DEFAULT_HOLE_PROMPT,
        max_new_tokens: int = DEFAULT_HOLE_TOKENS,
        max_s: float | None = None,
        **options: Any,
    ) -> InfillPrompt:
        """The prompt of a hole: see ``stream_infill`` and ``text.infill``. Computes nothing on an engine."""
        require_whole("prompt_tokens", prompt_tokens, 1)
        room = self.target.cache.capacity - (max_new_tokens if is_whole(max_new_tokens) else 0)
        return self._infilling.prompt(prefix, suffix, room=min(room, prompt_tokens), seconds=max_s, **options)

    @property
    def fills_holes(self) -> bool:
        """Whether the model reads the text behind a hole. Any other writes on from what stands before it."""
        return self._infilling.format.fills

    @cached_property
    def _infilling(self) -> Infill:
        return Infill(self.tokenizer)


def reading_as(drafter: Drafter, hole: InfillPrompt, lists: Iterator[list[int]]) -> Iterator[list[int]]:
    """The same tokens. The drafter is told within the turn of their text, before its first step. If the text ends
    before it begins to draft, the next one must not be read so."""
    drafter.read_as(hole.anchor, hole.as_read)
    try:
        yield from lists
    finally:
        drafter.read_as(0, ())
