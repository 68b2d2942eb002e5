"""Text to token ids and back. Also streams text in whole characters, and finds stop strings in it."""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgespec.errors import BundleError, ContextFull, SettingError, foreign
from edgespec.text.tokenizer_check import require_file, require_modest

_AGAIN = "export or pull the model again"
_LONG_BYTES = 1 << 20
"""A longer text is counted slice by slice first: the library takes over 100 bytes for each byte that it reads."""
_SLICE = 1 << 16
"""characters"""


def too_long(
    tokens: int, capacity: int, longest: int, *, got: str | None = None, allowed: str | None = None
) -> ContextFull:
    """The error of a prompt with so many tokens, or more. longest: context that the model can be loaded with."""
    hint = "shorten the prompt, or start a new conversation"
    if capacity < longest and tokens <= longest:
        hint = f"shorten the prompt, start a new conversation, or load with a context_length of up to {longest}"
    return ContextFull(
        "prompt is longer than the context",
        tokens=tokens,
        capacity=capacity,
        got=got or f"{tokens} tokens",
        allowed=allowed or f"{capacity} tokens",
        hint=hint,
    )


class Tokenizer:
    """A ``tokenizers`` tokenizer as a prompt needs it: without truncation, and with an optional BOS."""

    def __init__(
        self,
        path: Path,
        *,
        bos_token: str | None = None,
        add_bos: bool = False,
        template: str = "",
        end_ids: Collection[int] = (),
    ) -> None:
        """template: the source of the chat template. end_ids: the tokens that end a message or a text."""
        import tokenizers

        self._path = path
        with foreign(BundleError, f"{path} is not a tokenizer", hint=_AGAIN):
            require_file(path)
            self.engine: Any = tokenizers.Tokenizer.from_file(str(path))
            require_modest(self.engine)
        self.engine.no_truncation()
        self.engine.no_padding()
        self._template = template
        self._ends = (*end_ids, self.engine.token_to_id(bos_token) if bos_token else None)
        self._bos_id = self.engine.token_to_id(bos_token) if add_bos and bos_token else None

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self.engine.get_vocab_size(with_added_tokens=True))

    def written(self) -> str:
        """As JSON, without truncation and padding."""
        numbers = set(self.engine.get_vocab(with_added_tokens=False).values())  # two tokens may have one
        if len(numbers) > max(numbers, default=-1):
            return str(self.engine.to_str())
        # The library writes a line to stdout for a vocabulary with gaps, with the number of each.
        with foreign(BundleError, f"{self._path} is not a tokenizer", hint=_AGAIN):
            own = json.loads(self._path.read_bytes())
            return json.dumps(own | {"truncation": None, "padding": None})

    def encode(self, text: str, *, raw: bool = False) -> list[int]:
        """Token ids. ``raw``: put BOS in front if the model needs it. A chat template writes its own BOS."""
        ids = self._ids(self.engine, text)
        if raw and self._bos_id is not None and ids[:1] != [self._bos_id]:
            return [self._bos_id, *ids]
        return ids

    @cached_property
    def control_texts(self) -> list[str]:
        """Spellings of the tokens that a user's text must not become: special tokens, ends, and those of the template.

        Some models have role tokens that are not special. Added tokens also stand for words, tags and spaces of a text.
        A tag counts as a control token only if the template spells it. Words and spaces never do.
        """
        return [
            token.content
            for number, token in self._added.items()
            if token.special or number in self._ends or (token.content in self._template and _is_tag(token.content))
        ]

    @cached_property
    def spoken_texts(self) -> list[str]:
        """The control tokens that a model writes in its answers: pairs like ``<think>`` and ``</think>``. They begin no
        message."""
        plain = {token.content for token in self._added.values() if not token.special}
        pairs = [(text, f"</{text[1:]}") for text in plain if text[:1] == "<" and f"</{text[1:]}" in plain]
        return [text for pair in pairs for text in pair if text in self.control_texts]

    @cached_property
    def _added(self) -> dict[int, Any]:
        return dict(self.engine.get_added_tokens_decoder())

    def encode_parts(self, parts: Sequence[str]) -> list[int]:
        """Token ids of a text in parts. No token spans two parts; apart from that, the text is read as one.

        Raises SettingError if there are more control tokens than the parts spell, since a normalizer made them.
        """
        if len(parts) < 2:
            ids = self._ids(self.engine, "".join(parts))
        else:
            engine, cut, joint, cut_id = self._cut_engine
            whole = parts[0]
            for before, part in pairwise(parts):  # behind an added token the engine takes up the text anew anyway
                whole += (cut if before.endswith(self._added_texts) else joint) + part
            ids = [token for token in self._ids(engine, whole) if token != cut_id]
        spelt = Counter(self._control_ids[text] for part in parts for text in self._control_spelt.findall(part))
        control = set(self._control_ids.values())
        made = Counter(token for token in ids if token in control) - spelt
        if made:
            token = self.engine.id_to_token(min(made))
            raise SettingError(
                f"the tokenizer makes a control token of text in a message: {token}",
                hint="write it in another way, or allow it (--allow-special)",
            )
        return ids

    @cached_property
    def _cut_engine(self) -> tuple[Any, str, str, int]:
        """A tokenizer with one more token, which separates parts: its text, its text where a text goes on behind it,
        and its id. Nobody can guess the spelling.

        Tokenizers made by SentencePiece may put a space before each text between added tokens. A text that goes on gets
        none: it begins with a mark, which is removed with all that was put before it.
        """
        import tokenizers
        from tokenizers import pre_tokenizers

        engine = tokenizers.Tokenizer.from_str(self.written())
        name = secrets.token_hex(8)
        cut, mark = f"\ue000{name}\ue000", ""
        if self.puts_before:
            mark = f"\ue001{name}\ue001"
            removing = pre_tokenizers.Split(tokenizers.Regex(rf"(?m)\A.*{mark}"), "removed")
            own = [engine.pre_tokenizer] if engine.pre_tokenizer is not None else []
            engine.pre_tokenizer = pre_tokenizers.Sequence([*own, removing])
        engine.add_tokens([tokenizers.AddedToken(cut, normalized=False)])
        return engine, cut, cut + mark, engine.token_to_id(cut)

    @cached_property
    def puts_before(self) -> bool:
        """Whether the tokenizer puts something before every text between added tokens, like a space."""
        engine = self.engine
        steps = [
            json.loads(each.__getstate__()) for each in (engine.normalizer, engine.pre_tokenizer) if each is not None
        ]
        for step in steps:
            steps += [*step.get("normalizers", ()), *step.get("pretokenizers", ())]
        return any(step["type"] == "Prepend" or step.get("prepend_scheme") == "always" for step in steps)

    @cached_property
    def _added_texts(self) -> tuple[str, ...]:
        return tuple(token.content for token in self._added.values() if token.content)

    @cached_property
    def _control_ids(self) -> dict[str, int]:
        """Ids by spelling, of the tokens that can be cut. The token for unknown letters is left out."""
        model = self.engine.model
        unknown = self.engine.token_to_id(token) if (token := getattr(model, "unk_token", None)) else None
        if unknown is None and type(model).__name__ == "Unigram":
            unknown = json.loads(model.__getstate__()).get("unk_id")
        ids = {text: self.engine.token_to_id(text) for text in self.control_texts if len(text) > 1}
        return {text: number for text, number in ids.items() if number != unknown}

    @cached_property
    def _control_spelt(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._control_ids, key=len, reverse=True))) or "(?!)")

    def require_fit(self, text: str, capacity: int, longest: int = 0) -> None:
        """Raises ContextFull for a text that needs more than ``capacity`` tokens, before it is encoded. longest: see
        ``too_long``."""
        if len(text) <= capacity:
            return
        size, most = len(text.encode("utf-8", "surrogatepass")), capacity * self._longest_bytes
        if size > most:
            allowed = f"{most} bytes, {capacity} tokens of {self._longest_bytes} bytes"
            raise too_long(-(-size // self._longest_bytes), capacity, longest, got=f"{size} bytes", allowed=allowed)
        counted = 0
        for begin in range(0, len(text) if size > _LONG_BYTES else 0, _SLICE):
            counted += len(self._ids(self.engine, text[begin : begin + _SLICE]))
            if counted > 2 * capacity:  # cutting a text into slices adds a few tokens to each
                raise too_long(counted // 2, capacity, longest, got=f"over {counted} tokens")

    def stop_tokens(self, stops: Sequence[str]) -> dict[int, str]:
        """For each stop string that spells a control token: the id of its first one, which ends the text there. A
        control token has no text, so its spelling is never found in a text."""
        spelt = {token.content: number for number, token in self._added.items() if token.special}
        found: dict[int, str] = {}
        for stop in stops:
            places = [(stop.index(text), -len(text), token) for text, token in spelt.items() if text and text in stop]
            if places:
                found[min(places)[2]] = stop
        return found

    @cached_property
    def _longest_bytes(self) -> int:
        """Most bytes of a text that one token stands for."""
        return max((len(token.encode("utf-8", "surrogatepass")) for token in self.engine.get_vocab()), default=1)

    @staticmethod
    def _ids(engine: Any, text: str) -> list[int]:
        """Token ids of a text, without added special tokens. Raises SettingError, BundleError."""
        try:
            with foreign(BundleError, "this model's tokenizer cannot read the prompt"):
                return list(engine.encode(text, add_special_tokens=False).ids)
        except BundleError as error:
            if isinstance(error.__cause__, UnicodeEncodeError | TypeError):
                reason = str(error.__cause__)
                raise SettingError("prompt is not valid text", got=reason, hint="use UTF-8") from error
            raise

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.engine.decode(list(ids), skip_special_tokens=True))


def _is_tag(text: str) -> bool:
    """Whether the text is neither a word nor just spaces and signs."""
    return any(map(str.isalnum, text)) and not all(letter.isalnum() or letter.isspace() for letter in text)


class Detokenizer:
    """Text of a growing list of tokens, in pieces of whole characters.

    Only the tokens since the last safe cut are decoded again. So a piece costs the same at any length of text.
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
        except BundleError:  # bytes that are not text broke the stream: begin again after them
            text = self.flush()
            self._stream = self._stream_type(skip_special_tokens=True)
            return text
        if piece is None:
            return ""
        self._unsaid.clear()
        return str(piece)

    def flush(self) -> str:
        """The text that was held back. An unfinished character becomes U+FFFD."""
        with foreign(BundleError, "cannot decode tokens"):
            text = str(self._engine.decode(self._unsaid, skip_special_tokens=True)) if self._unsaid else ""
        self._unsaid.clear()
        return text


class StopStrings:
    """Finds stop strings in streamed text. Holds back only text that may become one.

    >>> scan = StopStrings(["END"])
    >>> scan.push("a E"), scan.push("N"), scan.push("T E"), scan.push("ND b")
    ('a ', '', 'ENT ', '')
    >>> scan.found
    'END'
    """

    def __init__(self, stops: Sequence[str], tokens: Mapping[int, str] | None = None) -> None:
        """tokens: ids that end the text themselves, and the stop string of each (see ``Tokenizer.stop_tokens``)."""
        if any(not stop for stop in stops):
            raise SettingError("stop string is empty", hint="leave it out")
        self._stops = stops
        self.tokens = tokens or {}
        self._held = ""
        self.found: str | None = None

    def ends_at(self, token: int) -> bool:
        """Whether this token ends the text. If so, ``found`` is its stop string."""
        self.found = self.found or self.tokens.get(token)
        return self.found is not None

    def push(self, text: str) -> str:
        """Text that is safe to show. When a stop string is found, the text before it; after that, nothing."""
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
