"""Text to token ids and back; streaming text that never splits a character, and stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edgespec.errors import BundleError, SettingError, mapped


class Tokenizer:
    """A ``tokenizers`` tokenizer with the two things a prompt needs: no truncation, and an optional BOS."""

    def __init__(self, path: Path, *, bos_token: str | None = None, add_bos: bool = False) -> None:
        import tokenizers

        try:
            self.engine: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path} is not a tokenizer: {error}", hint="export or pull the model again") from error
        self.engine.no_truncation()
        self.engine.no_padding()
        self._bos_id = self.engine.token_to_id(bos_token) if add_bos and bos_token else None

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self.engine.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, raw: bool = False) -> list[int]:
        """Token ids. ``raw``: put BOS in front if the model wants one; a chat template has written its own."""
        try:
            ids: list[int] = self.engine.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise SettingError("prompt is not valid text", got=str(error), hint="use UTF-8") from error
        if raw and self._bos_id is not None and ids[:1] != [self._bos_id]:
            return [self._bos_id, *ids]
        return ids

    @property
    def control_texts(self) -> list[str]:
        """How the tokens are spelt that no text of a user may become."""
        return [token.content for token in self.engine.get_added_tokens_decoder().values() if token.special]

    def encode_parts(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """Token ids of texts one behind the other; in those marked True no control token is looked for."""
        ids: list[int] = []
        for text, is_text in parts:
            engine = self._engine_of_text if is_text else self.engine
            ids += engine.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _engine_of_text(self) -> Any:
        import tokenizers

        engine = tokenizers.Tokenizer.from_str(self.engine.to_str())
        engine.encode_special_tokens = True  # as the text that they are spelt as
        return engine

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.engine.decode(list(ids), skip_special_tokens=True))


class Detokenizer:
    """Text of a growing list of tokens, piece by piece: each piece is whole characters.

    Only the tokens since the last safe cut are decoded again, so a piece costs the same at any length of text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers import decoders

        self._engine = tokenizer.engine
        self._stream_type: Any = decoders.DecodeStream
        self._stream = self._stream_type(skip_special_tokens=True)
        self._unsaid: list[int] = []  # tokens whose text has not come out yet

    def push(self, token: int) -> str:
        self._unsaid.append(token)
        try:
            piece = self._stream.step(self._engine, token)
        except (
            Exception
        ):  # "Invalid prefix": the stream lost its place on bytes that are no text; begin anew after them
            text = self.flush()
            self._stream = self._stream_type(skip_special_tokens=True)
            return text
        if piece is None:
            return ""
        self._unsaid.clear()
        return str(piece)

    def flush(self) -> str:
        """What was held back: an unfinished character comes out as U+FFFD."""
        with mapped(BundleError, "cannot decode tokens"):
            text = str(self._engine.decode(self._unsaid, skip_special_tokens=True)) if self._unsaid else ""
        self._unsaid.clear()
        return text


class StopStrings:
    """Finds stop strings in streamed text; holds back only text that may become one.

    >>> scan = StopStrings(["END"])
    >>> scan.push("a E"), scan.push("N"), scan.push("T E"), scan.push("ND b")
    ('a ', '', 'ENT ', '')
    >>> scan.found
    'END'
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise SettingError("stop string is empty", hint="leave it out")
        self._stops = stops
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Text that is safe to show; after a stop string was found, what came before it, then nothing."""
        if self.found is not None or not self._stops:
            return text if self.found is None else ""
        self._held += text
        first, stop = min(((i, s) for s in self._stops if (i := self._held.find(s)) >= 0), default=(-1, None))
        if stop is not None:
            self.found = stop
            shown, self._held = self._held[:first], ""
            return shown
        longest = max(len(s) for s in self._stops) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-size:]) for s in self._stops):
                shown, self._held = self._held[:-size], self._held[-size:]
                return shown
        shown, self._held = self._held, ""
        return shown

    def flush(self) -> str:
        shown, self._held = self._held, ""
        return shown
