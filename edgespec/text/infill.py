"""The prompt for the text of a hole: what stands before it, behind it, and in other files, within a budget of tokens.

The hole is anchored at the start of its line, or of a line before it that the caller names. What was typed since comes
last, behind the token for the middle. So a prompt after one more keystroke differs at its end only, and a cache holds
all before it. (Without a token for the middle, the text before the hole is last anyway, and is read as one.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from edgespec.errors import SettingError, shown
from edgespec.sampling_params import is_number, is_whole
from edgespec.text.control_tokens import ControlTokens
from edgespec.text.fim import FILES, PREFIX, SUFFIX, FimFormat, format_for
from edgespec.text.hole_end import FENCE, LineRules
from edgespec.text.token_boundary import Spellings
from edgespec.text.tokenizer import Tokenizer

DEFAULT_HOLE_TOKENS = 128
"""of the text of a hole"""
DEFAULT_HOLE_PROMPT = 2048
"""tokens of the text around a hole, and of other files"""
REPOSITORY = "project"
"""the name that models are told: no client knows another"""
_STEP = 16
"""lines. The beginning of a text that is cut moves by so many, so that not every new line makes the cache useless."""
_LEAST = 16
"""tokens of a prompt"""
_MOST_TYPED = 128
"""tokens of whole lines behind the token for the middle: they are read again at the next anchor, and take room"""
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_LETTERS_A_TOKEN = 16
"""characters, as a bound. A text with more is not encoded as a whole."""
_UNREAD = 1024
"""tokens of files that did not fit, for lookups only"""
_KEPT_TEXTS = 64
"""whose tokens are known. A key changes one of those that a prompt is made of."""
_UNNAMED = "filename"
"""the path of the hole's file, if nobody knows it"""
_MARKDOWN = (".md", ".markdown", ".mdx", ".qmd", ".rmd")

Files = Mapping[str, str] | Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class InfillPrompt:
    """tokens: to go on with. anchor: how many of them stand before what was typed since it.

    as_read: what a lookup reads in the place of the first ``anchor`` tokens. It is the text as it stands in its files,
        with what lies before the hole at the end. So the hole's beginning is found where it occurs elsewhere, and a
        model that is not shown the suffix can still copy from it.
    again: letters of the last token that was typed, in the tokenizer's spelling. It is not in ``tokens``, and the text
        has to begin with it (see ``text.token_boundary``). typed_again: how many characters these are.
    stops: of the format. rules: where the text meets the suffix, for a model that is not shown it.
    """

    tokens: list[int]
    anchor: int
    as_read: list[int]
    again: str
    typed_again: int
    stops: tuple[str, ...]
    rules: LineRules


class Infill:
    """Makes prompts for the holes of texts, in the format that a tokenizer's tokens tell."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.format: FimFormat = format_for(tokenizer.engine.token_to_id)
        self._spellings: Spellings | None = None
        self._encoded = lru_cache(_KEPT_TEXTS)(self._encode)

    def prompt(
        self,
        prefix: str,
        suffix: str,
        *,
        files: Files = (),
        path: str | None = None,
        anchor: int | None = None,
        room: int,
        indent: int = 0,
        seconds: float | None = None,
        heal: bool = True,
    ) -> InfillPrompt:
        """A prompt of at most ``room`` tokens. The nearest text comes first: what was typed since the anchor, with room
        for more, then a quarter for the suffix, at most half for the files, and the prefix. All is cut at lines.

        files: paths and texts, the most important one last. path: of the file with the hole. anchor: characters of the
        prefix, up to somewhere in the anchor's line. Without it, or if too much text stands behind it, that is the
        hole's own line. indent, seconds: see ``LineRules``. heal: choose the last token again (see
        ``InfillPrompt.again``).
        """
        _require_kinds(prefix, suffix, path, indent, seconds)
        if room < _LEAST:
            what, hint = "no room for the text around the hole", "ask for a shorter text"
            raise SettingError(what, got=f"{room} tokens", allowed=f"{_LEAST} or more", hint=hint)
        if anchor is not None and not is_whole(anchor):
            raise SettingError("anchor", got=anchor, allowed="a whole number of characters", setting="anchor")
        others, form = _checked(files), self.format
        fence = not form.fills and not _is_markdown(path, prefix + suffix)
        begin = self._anchor(prefix, anchor, room // 4) if form.layout[-1] != PREFIX else len(prefix)
        typed = self._ids(_end_of(prefix[begin:], room // 4 * _LETTERS_A_TOKEN), goes_on=True)[-(room // 4) :]
        left = room - _held(len(typed), room // 4) - len(form.layout) - 1
        others, path = self._named_within(others, path, left // 2)
        left -= len(self._around(others, path, [()] * len(others)))
        shown, unread = self._files(others, left // 2)
        left -= sum(map(len, shown))
        behind = self._fitting(suffix, room // 4, goes_on=True)
        before = self._fitting(prefix[:begin], left - (len(behind) if form.fills else 0), from_end=True)
        again, typed_again = "", 0
        if heal and len(end := typed if form.layout[-1] != PREFIX else before) >= (1 if form.fills else 2):
            again, typed_again = self._again(end, prefix)
        places = {FILES: self._around(others, path, shown), PREFIX: before, SUFFIX: behind}
        tokens = self._tokenizer.encode("", raw=True)
        for part in form.layout:
            tokens += places[part] if part in places else [self._id(part)]
        anchor = len(tokens)
        tokens += typed
        if not tokens:
            raise SettingError("there is no text before the hole", hint="write something first")
        to_meet = "" if form.fills else suffix
        return InfillPrompt(
            tokens,
            anchor,
            as_read=[*unread, *(token for ids in shown for token in ids), *behind, *before],
            again=again,
            typed_again=typed_again,
            stops=form.stops,
            rules=LineRules.meeting(to_meet, indent=indent, seconds=seconds, fence=fence),
        )

    def _anchor(self, prefix: str, asked: int | None, room: int) -> int:
        """Where the line begins that the hole is anchored at."""
        own = prefix.rfind("\n") + 1
        if asked is None or (begin := prefix.rfind("\n", 0, max(asked, 0)) + 1) >= own:
            return own
        most = min(_MOST_TYPED, room)
        text = prefix[begin:]
        return begin if len(text) <= most * _LETTERS_A_TOKEN and len(self._ids(text, goes_on=True)) <= most else own

    def _again(self, ids: list[int], prefix: str) -> tuple[str, int]:
        """Take the last token off, if it stands for whole characters at the end of the prefix: its letters, and how
        many characters it is."""
        text = self._tokenizer.decode(ids[-1:])
        if not text or not prefix.endswith(text) or self._tokenizer.puts_before:
            return "", 0
        return str(self._tokenizer.engine.id_to_token(ids.pop())), len(text)

    def spellings(self, vocab_size: int) -> Spellings:
        """Of the tokens that stand for text."""
        if self._spellings is None:
            tokenizer = self._tokenizer
            special = (
                tokenizer.engine.token_to_id(text)
                for text in (*tokenizer.control_texts, *self.format.tokens, *self.format.stops)
            )
            left_out = frozenset(token for token in special if token is not None)
            self._spellings = Spellings(tokenizer.engine.get_vocab(), left_out, vocab_size)
        return self._spellings

    def _files(self, files: Sequence[tuple[str, str]], room: int) -> tuple[list[list[int]], list[int]]:
        """Tokens of each file, and some of what does not fit. The last file comes first."""
        shown: list[list[int]] = []
        unread: list[int] = []
        for _, text in reversed(files):
            ids = self._fitting(text, room)
            room -= len(ids)
            shown.append(ids)
            if len(unread) < _UNREAD:
                longer = self._fitting(text, len(ids) + _UNREAD - len(unread))
                unread += longer if len(longer) > len(ids) else []
        return shown[::-1], unread

    def _named_within(
        self, files: Sequence[tuple[str, str]], path: str | None, room: int
    ) -> tuple[list[tuple[str, str]], str | None]:
        """The last files whose paths fit in so many tokens, and the path of the hole's file if it fits."""
        kept: list[tuple[str, str]] = []
        if path is not None and len(path) > room * _LETTERS_A_TOKEN:
            path = None
        used = len(self._around((), path or _UNNAMED, ()))
        for file in reversed(files):
            name = file[0]
            used += len(self._beginning(name)) if len(name) <= room * _LETTERS_A_TOKEN else room
            if used > room:
                break
            kept.append(file)
        if not kept and path is not None and len(self._around((), path, ())) > room:
            path = None
        return kept[::-1], path

    def _around(self, files: Sequence[tuple[str, str]], path: str | None, texts: Sequence[Sequence[int]]) -> list[int]:
        """The texts of files, each behind its path, and the path of the hole's own file. Empty if no path is known."""
        if not files and path is None:
            return []
        form = self.format
        ids = [self._id(form.repository), *self._ids(REPOSITORY + form.after_name)] if form.repository else []
        for (name, _), text in zip([*files, (path or _UNNAMED, "")], [*texts, ()], strict=True):
            ids += [*self._beginning(name), *text]
        return ids

    def _beginning(self, name: str) -> list[int]:
        """Tokens in front of a file's text."""
        if not self.format.file:
            return self._ids(f"\n\n--- {name} ---\n\n")
        return [self._id(self.format.file), *self._ids(f"{name}\n")]

    def _fitting(self, text: str, room: int, *, from_end: bool = False, goes_on: bool = False) -> list[int]:
        """Tokens of as many whole lines as fit: the first lines, or with ``from_end`` the last ones.

        A first one of them that is too long gives as many of its tokens as fit. goes_on: see ``_ids``.
        """
        if room <= 0 or not text:
            return []
        if len(text) <= room * _LETTERS_A_TOKEN and len(ids := self._ids(text, goes_on=goes_on)) <= room:
            return ids
        lines = _LINES.findall(text)
        kept = used = 0
        for line in reversed(lines) if from_end else lines:
            used += len(self._tokenizer.encode(line[: room * _LETTERS_A_TOKEN]))
            if used > room:
                break
            kept += 1
        if not from_end:
            shown = lines[:kept] or [lines[0][: room * _LETTERS_A_TOKEN]]
            return self._ids("".join(shown), goes_on=goes_on)[:room]
        if not kept:
            return self._ids(_end_of(lines[-1], room * _LETTERS_A_TOKEN))[-room:]
        begin = -((kept - len(lines)) // _STEP) * _STEP
        return self._ids("".join(lines[begin if begin < len(lines) else len(lines) - kept :]))[-room:]

    def _ids(self, text: str, *, goes_on: bool = False) -> list[int]:
        """Tokens of a text, in which a spelling of a special token stays text. goes_on: the text follows another one.
        Some tokenizers would put a space before it."""
        return list(self._encoded(text, goes_on))

    def _encode(self, text: str, goes_on: bool) -> tuple[int, ...]:
        [message], mark = self._control.marked([{"content": text}])
        parts = self._control.parts(message["content"], mark)
        if goes_on and text and self._tokenizer.puts_before:
            parts = ["", *parts]
        return tuple(self._tokenizer.encode(text) if len(parts) == 1 else self._tokenizer.encode_parts(parts))

    def _id(self, token: str) -> int:
        return int(self._tokenizer.engine.token_to_id(token))

    @cached_property
    def _control(self) -> ControlTokens:
        texts = [*self._tokenizer.control_texts, *self.format.tokens, *self.format.stops]
        return ControlTokens(list(dict.fromkeys(texts)))


def _end_of(line: str, most: int) -> str:
    """The end of a line that is too long to be encoded: between one and two times so many characters. Its beginning
    moves in steps, as that of other texts does."""
    return line if len(line) <= 2 * most else line[(len(line) // most - 1) * most :]


def _is_markdown(path: str | None, text: str) -> bool:
    """Whether a fence belongs to the text of a hole: also in code whose comments have some."""
    return FENCE in text or (path or "").lower().endswith(_MARKDOWN)


def _held(typed: int, most: int) -> int:
    """Tokens of the room that so many typed ones take: in steps, so that a key moves no cut of what stands in front."""
    step = min(_MOST_TYPED, most // 2)
    return min(most, max(1, -(-typed // step)) * step)


def _require_kinds(prefix: str, suffix: str, path: str | None, indent: int, seconds: float | None) -> None:
    for setting, given, holds, allowed in (
        ("prefix", prefix, isinstance(prefix, str), "a text"),
        ("suffix", suffix, isinstance(suffix, str), "a text"),
        ("path", path, isinstance(path, str | None), "a text, or None"),
        ("indent", indent, is_whole(indent), "a whole number of characters"),
        ("max_s", seconds, seconds is None or is_number(seconds), "seconds, or None"),
    ):
        if not holds:
            raise SettingError(setting, got=shown(given), allowed=allowed, setting=setting)


def _checked(files: Files) -> list[tuple[str, str]]:
    if isinstance(files, str) or not isinstance(files, Iterable):
        raise SettingError("files", got=shown(files), allowed="a dict of paths and their texts", setting="files")
    pairs = list(files.items() if isinstance(files, Mapping) else files)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise SettingError("files", got=pair, allowed="pairs of a path and its text", setting="files")
    return [(" ".join(name.split()) or _UNNAMED, text) for name, text in pairs]
