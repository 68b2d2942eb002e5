"""Text to token ids and back; streaming text that never splits a character, and stop strings in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edgespec.errors import BundleError, ContextFull, SettingError, foreign
from edgespec.text.tokenizer_check import require_file, require_modest

_LONG_BYTES = 1 << 20
"""A longer text is counted slice by slice first: the library takes over 100 bytes for each byte that it reads."""
_SLICE = 1 << 16
"""characters"""


class Tokenizer:
    """A ``tokenizers`` tokenizer with the two things a prompt needs: no truncation, and an optional BOS."""

    def __init__(self, path: Path, *, bos_token: str | None = None, add_bos: bool = False) -> None:
        import tokenizers

        with foreign(BundleError, f"{path} is not a tokenizer", hint="export or pull the model again"):
            require_file(path)
            self.engine: Any = tokenizers.Tokenizer.from_file(str(path))
            require_modest(self.engine)
        self.engine.no_truncation()
        self.engine.no_padding()
        self._added = list(self.engine.get_added_tokens_decoder().values())
        self._role_texts: set[str] = set()
        self._bos_id = self.engine.token_to_id(bos_token) if add_bos and bos_token else None

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self.engine.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, raw: bool = False) -> list[int]:
        """Token ids. ``raw``: put BOS in front if the model wants one; a chat template has written its own."""
        ids = self._ids(self.engine, text)
        if raw and self._bos_id is not None and ids[:1] != [self._bos_id]:
            return [self._bos_id, *ids]
        return ids

    @property
    def control_texts(self) -> list[str]:
        """How the tokens are spelt that no text of a user may become."""
        return [token.content for token in self._added if token.special or token.content in self._role_texts]

    @property
    def eaten_blanks(self) -> dict[str, tuple[bool, bool]]:
        """Of added tokens that take the blanks around them: on the left, on the right."""
        return {token.content: (token.lstrip, token.rstrip) for token in self._added if token.lstrip or token.rstrip}

    def protect(self, template: str) -> None:
        """Some models do not mark their role tokens as special. Take as control tokens also the added ones that a chat
        template writes. Those that it looks for in a message, such as ``</think>``, are a matter of its own."""
        self._role_texts = {
            token.content
            for token in self._added
            if not token.special and token.content in template and not _looks_for(template, token.content)
        }
        self.__dict__.pop("_engine_of_text", None)

    def encode_parts(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """Token ids of texts one behind the other; in those marked True no control token is looked for."""
        ids: list[int] = []
        for text, is_text in parts:
            ids += self._ids(self._engine_of_text if is_text else self.engine, text)
        return ids

    def require_fit(self, text: str, capacity: int) -> None:
        """Raises ContextFull for a text that cannot be ``capacity`` tokens or fewer, before anything is made of it."""
        if len(text) <= capacity:
            return
        size, most = len(text.encode("utf-8", "surrogatepass")), capacity * self._longest_bytes
        if size > most:
            raise ContextFull(
                "prompt is longer than the context",
                got=f"{size} bytes",
                allowed=f"{most} bytes, {capacity} tokens of {self._longest_bytes} bytes",
                hint="shorten the prompt",
            )
        counted = 0
        for begin in range(0, len(text) if size > _LONG_BYTES else 0, _SLICE):
            counted += len(self._ids(self.engine, text[begin : begin + _SLICE]))
            if counted > 2 * capacity:  # a slice begins and ends with a few tokens too many
                raise ContextFull(
                    "prompt is longer than the context",
                    got=f"over {counted} tokens",
                    allowed=f"{capacity} tokens",
                    hint="shorten the prompt",
                )

    def stop_tokens(self, stops: Sequence[str]) -> dict[int, str]:
        """Of the stop strings in which a control token is spelt: the id of the first one, which ends the text there.
        A control token has no text, so its spelling is never found in one."""
        spelt = {token.content: self.engine.token_to_id(token.content) for token in self._added if token.special}
        found: dict[int, str] = {}
        for stop in stops:
            places = [(stop.index(text), -len(text), token) for text, token in spelt.items() if text and text in stop]
            if places:
                found[min(places)[2]] = stop
        return found

    @cached_property
    def _longest_bytes(self) -> int:
        """No token stands for more of a text."""
        return max((len(token.encode("utf-8", "surrogatepass")) for token in self.engine.get_vocab()), default=1)

    @staticmethod
    def _ids(engine: Any, text: str) -> list[int]:
        """Of a text without special tokens added. Raises SettingError, BundleError."""
        try:
            with foreign(BundleError, "this model's tokenizer cannot read the prompt"):
                return list(engine.encode(text, add_special_tokens=False).ids)
        except BundleError as error:
            if isinstance(error.__cause__, UnicodeEncodeError | TypeError):
                reason = str(error.__cause__)
                raise SettingError("prompt is not valid text", got=reason, hint="use UTF-8") from error
            raise

    @cached_property
    def _engine_of_text(self) -> Any:
        import tokenizers

        engine = tokenizers.Tokenizer.from_str(self.engine.to_str())
        engine.add_special_tokens(
            [tokenizers.AddedToken(text, special=True, normalized=False) for text in sorted(self._role_texts)]
        )
        engine.encode_special_tokens = True  # as the text that they are spelt as
        return engine

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.engine.decode(list(ids), skip_special_tokens=True))


def _looks_for(template: str, token: str) -> bool:
    """Whether a template takes texts apart by a token.

    >>> _looks_for("{{ m.split('</think>')[-1] }}", "</think>"), _looks_for("{{ '<user>' + m }}", "<user>")
    (True, False)
    """
    quoted = f"['\"]{re.escape(token)}['\"]"
    return re.search(rf"\w\(\s*{quoted}|{quoted}\s+(not\s+)?in\b", template) is not None


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
            with foreign(BundleError, "cannot decode tokens"):
                piece = self._stream.step(self._engine, token)
        except BundleError:  # the stream lost its place on bytes that are no text: begin again after them
            text = self.flush()
            self._stream = self._stream_type(skip_special_tokens=True)
            return text
        if piece is None:
            return ""
        self._unsaid.clear()
        return str(piece)

    def flush(self) -> str:
        """What was held back: an unfinished character comes out as U+FFFD."""
        with foreign(BundleError, "cannot decode tokens"):
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

    def __init__(self, stops: Sequence[str], tokens: Mapping[int, str] | None = None) -> None:
        """tokens: those that end the text themselves, and the string found then (see ``Tokenizer.stop_tokens``)."""
        if any(not stop for stop in stops):
            raise SettingError("stop string is empty", hint="leave it out")
        self._stops = stops
        self._tokens = tokens or {}
        self._held = ""
        self.found: str | None = None

    def ends_at(self, token: int) -> bool:
        """Whether this token ends the text; what it is called is found then."""
        self.found = self.found or self._tokens.get(token)
        return self.found is not None

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
