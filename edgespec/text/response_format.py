"""Structured output through llguidance: JSON schemas, regular expressions and Lark grammars as constraints.

A grammar is about bytes, a model about tokens. llguidance is an Earley parser over a trie of the vocabulary. For a text
it computes the tokens that may follow. Where bytes are forced, it allows only the token that the tokenizer would use
for them, as soon as no other token could follow. So a mask with a single token is a forced token, and masks are all
that is needed from llguidance.

Whitespace in JSON is bounded. Otherwise a small model that may not write what it wants writes blanks forever. The
pattern is llama.cpp's: nothing, one space, or a line break and an indent. A schema's own "x-guidance" overrides it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgespec.errors import BundleError, SettingError, wrap_errors
from edgespec.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

WHITESPACE = r"[ ]|\n[ \t]{0,20}"
BARE = ("text", "json_object")
FILLED = ("json_schema", "regex", "grammar")
"""Types of a response format. A filled one has a key with the name of its type."""


def grammar_of(response_format: Mapping[str, Any] | None, *, ignore_eos: bool = False) -> str | None:
    """llguidance's form of a response format; None for plain text. No model is needed.

    ``{"type": "text"}``, ``{"type": "json_object"}`` and ``{"type": "json_schema", "json_schema": {"schema": ...}}``
    are OpenAI's. ``{"type": "regex", "regex": ...}`` must match the whole text. Its ``\\d`` and ``\\w`` are ASCII, as
    in JSON Schema. ``{"type": "grammar", "grammar": ...}`` is a Lark grammar in llguidance's dialect.

    ignore_eos: whether the text should go on after its end, which no format allows. Raises SettingError, with
        llguidance's reason.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping) or "type" not in response_format:
        raise SettingError("response_format", got=response_format, allowed='an object with the key "type"')
    kind = response_format["type"]
    if kind not in BARE + FILLED:
        raise SettingError("response_format: type", got=kind, allowed=", ".join(BARE + FILLED))
    keys = ["type", kind] if kind in FILLED else ["type"]
    if set(response_format) != set(keys):
        raise SettingError(f"response_format: keys of {kind}", got=list(response_format), allowed=keys)
    if kind == "text":
        return None
    if ignore_eos:
        raise SettingError(
            "a text with a response format ends where the format does: ignore_eos", got=True, setting="ignore_eos"
        )

    from llguidance import LLMatcher

    try:
        if kind in ("json_object", "json_schema"):
            schema = {"type": "object"} if kind == "json_object" else _schema(response_format["json_schema"])
            text = json.dumps(schema, allow_nan=False)
            _require_short(kind, text)
            grammar = LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": WHITESPACE})
        else:
            text = response_format[kind]
            if not isinstance(text, str) or not (text if kind == "regex" else text.strip()):
                raise SettingError(
                    f"response_format: {kind}", got=text, allowed="a text that is not empty", setting=kind
                )
            _require_short(kind, text)
            grammar = _lark(text) if kind == "regex" else text
        wrong, reasons = LLMatcher.validate_grammar_with_warnings(grammar, limits=_limits())
    except (TypeError, ValueError, RecursionError) as error:  # not JSON, or not text
        raise _refused(kind, str(error)) from error
    if wrong:
        raise _refused(kind, reasons[0])
    return grammar


_LONGEST = {"regex": 16_384, "grammar": 1 << 20, "json_schema": 1 << 20, "json_object": 1 << 20}
"""characters. The cost of a token grows with the length of a regular expression."""


def _require_short(kind: str, text: str) -> None:
    if len(text) > _LONGEST[kind]:
        allowed = f"{_LONGEST[kind]} characters"
        raise SettingError(f"response_format: {kind}", got=f"{len(text)} characters", allowed=allowed, setting=kind)


_DEAD_END = {"NoExtensionBias": "a dead end: nothing that begins like this comes to an end"}


class Grammars:
    """Makes constraints for one vocabulary. Its tables take part of a second to build, and are built once."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Collection[int]) -> None:
        """vocab_size: number of the target's logits. stop_ids: the only tokens allowed after a complete text."""
        from llguidance import LLTokenizer

        if not stop_ids:
            raise SettingError("a response format needs a model with an end token, and this one has none")
        self._vocab_size = vocab_size
        self._stop_ids = frozenset(stop_ids)
        with wrap_errors(BundleError, "this model's tokenizer cannot be used with a response format"):
            self._tokenizer = LLTokenizer(
                tokenizer.written(), n_vocab=max(vocab_size, tokenizer.vocab_size), eos_token=sorted(stop_ids)
            )

    def constraint(self, grammar: str) -> Grammar:
        """A fresh constraint. Raises SettingError if the grammar does not fit this vocabulary."""
        from llguidance import LLMatcher

        def matcher() -> LLMatcher:
            return LLMatcher(self._tokenizer, grammar, log_level=0, limits=_limits())

        return Grammar(matcher, self._vocab_size, self._stop_ids)


class Grammar:
    """A ``protocols.Constraint``: a matcher that has read the committed text and a path after it.

    For another path, the matcher goes back to the last token that both paths share. Some matchers cannot go back
    (llguidance's max_tokens and stop), or have ended on a path. Such a matcher is replaced by a new one, which reads
    the committed text again.
    """

    def __init__(self, matcher: Callable[[], LLMatcher], vocab_size: int, stop_ids: Collection[int]) -> None:
        self._new = matcher
        self._matcher = matcher()
        if reason := self._matcher.get_error():
            raise _refused("grammar", reason)
        self._vocab_size = vocab_size
        self._stop_ids = stop_ids
        self._text: list[int] = []
        self._path: list[int] = []  # what the matcher has read after the text
        self._masks: dict[tuple[int, ...], NDArray[np.bool_]] = {}  # of this round
        self._anything = np.ones(vocab_size, np.bool_)
        self._over = False

    def allowed(self, ahead: Sequence[int]) -> NDArray[np.bool_]:
        if self._over or any(token in self._stop_ids for token in ahead):
            return self._anything
        path = tuple(ahead)
        if path not in self._masks:
            assert not path or self._masks.get(path[:-1], self._anything)[path[-1]], "a token that is not allowed"
            self._masks[path] = self._mask(path)
        return self._masks[path]

    def commit(self, tokens: Sequence[int]) -> None:
        ends = next((index for index, token in enumerate(tokens) if token in self._stop_ids), None)
        self._over = self._over or ends is not None
        self._go(tokens[:ends])
        self._text += tokens[:ends]
        self._path.clear()
        self._masks.clear()

    def _mask(self, path: Sequence[int]) -> NDArray[np.bool_]:
        self._go(path)
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            if not path:
                reason = _reason(self._matcher.get_error())
                raise SettingError("the response format allows no token here", got=_DEAD_END.get(reason, reason))
            return np.zeros(self._vocab_size, np.bool_)
        bits: NDArray[np.uint8] = np.unpackbits(words, count=self._vocab_size, bitorder="little")
        return bits.view(np.bool_)

    def _go(self, path: Sequence[int]) -> None:
        """Make the matcher read the text and then ``path``."""
        same = 0
        while same < min(len(path), len(self._path)) and path[same] == self._path[same]:
            same += 1
        if not self._matcher.rollback(len(self._path) - same):
            self._matcher = self._new()
            same = 0
            self._read(self._text)
        self._read(path[same:])
        self._path = list(path)

    def _read(self, tokens: Sequence[int]) -> None:
        if tokens:
            self._matcher.consume_tokens(list(tokens))


def _schema(wrapped: Any) -> Any:
    """The schema in OpenAI's wrapper. name, description and strict are ignored: the text always follows the schema."""
    known = {"schema", "name", "description", "strict"}
    if not isinstance(wrapped, Mapping) or "schema" not in wrapped or not set(wrapped) <= known:
        keys = sorted(wrapped) if isinstance(wrapped, Mapping) else wrapped
        raise SettingError("response_format: json_schema", got=keys, allowed='an object with the key "schema"')
    schema = wrapped["schema"]
    if not isinstance(schema, Mapping):
        raise SettingError("response_format: schema", got=schema, allowed="a JSON object", setting="json_schema")
    return schema


def _lark(regex: str) -> str:
    from llguidance import regex_to_lark

    if (len(regex) - len(regex.rstrip("\\"))) % 2:  # llguidance would drop the last backslash
        raise _refused("regex", "a backslash at its end")
    return f"start: /{regex_to_lark(regex, 'dw')}/"


def _refused(kind: str, reason: str) -> SettingError:
    what = f"response_format: this {kind.replace('_', ' ')} cannot be used"
    return SettingError(what, got=_reason(reason), setting=kind)


def _reason(text: str) -> str:
    """The line of llguidance's message that says what is wrong. The other lines say where."""
    lines = text.splitlines()
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False)
