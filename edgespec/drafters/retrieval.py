"""Drafts from the user's own files, in the spirit of REST (He et al. 2023, arXiv 2311.08252).

The files are tokenized once into one array, and its positions are sorted by the tokens *before* them, nearest first.
So one binary search for the end of the context, read backwards, ends beside the position with the longest match.
Positions with a match of that length vote on what follows. REST verifies a tree of the candidates; this drafts the
likeliest chain.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.base import common_prefix
from edgespec.errors import SettingError
from edgespec.types import Draft, SamplingParams, Step, Verdict

_END = -1  # stands between texts; no token
_VOTERS = 64
_NOT_SOURCES = {"node_modules", "__pycache__", "site-packages"}


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...


class Retrieval:
    """Proposes what followed the end of the context in some texts. Built once; 8 bytes a token.

    texts: token ids of each. shortest, longest: how many tokens at the end of the context have to match, and are looked
    at.

    >>> drafter = Retrieval([[1, 2, 3, 4, 5], [9, 2, 3, 7]])
    >>> drafter.propose([1, 2, 3], 4).tokens, drafter.propose([8, 9, 2, 3], 4).tokens, drafter.propose([2, 3], 4).tokens
    ((4, 5), (7,), ())
    """

    name = "retrieval"

    def __init__(self, texts: Iterable[Sequence[int]], *, shortest: int = 3, longest: int = 16) -> None:
        self._shortest, self._longest = shortest, longest
        parts = [np.array([_END])]
        for text in texts:
            parts += [np.asarray(text), parts[0]]
        self._tokens: NDArray[np.int32] = np.concatenate(parts).astype(np.int32)
        self._order = _by_what_ends_there(self._tokens, longest)

    @classmethod
    def of_folder(
        cls,
        folder: str | Path,
        tokenizer: Encoder,
        *,
        max_tokens: int = 1_000_000,
        max_files: int = 20_000,
        max_file_bytes: int = 1 << 18,
    ) -> Retrieval:
        """Of the text files below a folder, newest first, until there are ``max_tokens``.

        Left out: hidden files and folders, links, virtual environments, node_modules and the like, files that are not
        UTF-8 text or larger than ``max_file_bytes``. At most ``max_files`` are looked at.
        Raises SettingError if there is no such folder, or no text in it.
        """
        texts: list[list[int]] = []
        room = max_tokens
        for path in _files(Path(folder), max_files, max_file_bytes):
            if room and (text := _text(path)):
                texts.append(tokenizer.encode(text)[:room])
                room -= len(texts[-1])
        if not texts:
            hint = "name a folder with source code or other texts"
            raise SettingError("no text to draft from", got=str(folder), allowed="a folder of UTF-8 files", hint=hint)
        return cls(texts)

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        pass

    def propose(self, context: Sequence[int], k: int) -> Draft:
        if k == 0:
            return Draft()
        follows = self._matches(context[: -self._longest - 1 : -1]) + 1
        tokens: list[int] = []
        while len(tokens) < k:
            follows = follows[self._tokens[follows] != _END]
            if not len(follows):
                break
            said = self._tokens[follows]
            tokens.append(Counter(said.tolist()).most_common(1)[0][0])
            follows = follows[said == tokens[-1]] + 1
        return Draft(tuple(tokens))

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        pass

    def reset(self) -> None:
        """The files are no text of a generation: they stay."""

    def _matches(self, wanted: Sequence[int]) -> NDArray[np.integer]:
        """Where the longest match of a context, given backwards, ends: at most ``_VOTERS`` of the places."""
        wanted = list(wanted)
        place = bisect_left(self._order, wanted, key=self._backwards)
        beside = self._order[max(0, place - 1) : place + 1].tolist()
        length = max((common_prefix(wanted, self._backwards(index)) for index in beside), default=0)
        if length < max(self._shortest, 1):
            return self._order[:0]
        begin = bisect_left(self._order, wanted[:length], key=lambda i: self._backwards(i)[:length])
        end = bisect_right(self._order, wanted[:length], key=lambda i: self._backwards(i)[:length])
        return self._order[begin : end : -(-(end - begin) // _VOTERS)]

    def _backwards(self, index: int) -> list[int]:
        """The tokens that end at ``index``, the last one first."""
        tokens: list[int] = self._tokens[max(0, index + 1 - self._longest) : index + 1][::-1].tolist()
        return tokens


def _by_what_ends_there(tokens: NDArray[np.int32], depth: int) -> NDArray[np.int32]:
    """Positions sorted by (at least) ``depth`` tokens that end there, compared from the last one backwards.

    Doubling (Manber and Myers 1993): the rank by 2 n tokens is the rank by the pair of ranks by n tokens.
    """
    rank = tokens.astype(np.int64) - _END
    reach = 1
    while reach < depth:
        before = np.zeros_like(rank)
        before[reach:] = rank[:-reach]
        _, rank = np.unique(rank * (rank.max() + 1) + before, return_inverse=True)
        reach *= 2
    return np.argsort(rank, kind="stable").astype(np.int32)


def _files(folder: Path, most: int, max_bytes: int) -> list[Path]:
    """Regular files that may hold text, newest first."""
    if not folder.is_dir():
        raise SettingError("folder to draft from", got=str(folder), allowed="an existing folder")
    found: list[tuple[float, Path]] = []
    for path in islice(_names(folder), most):
        with suppress(OSError):  # a file that went away, or that is not ours to look at
            about = path.lstat()
            if stat.S_ISREG(about.st_mode) and about.st_size <= max_bytes:
                found.append((-about.st_mtime, path))
    return [path for _, path in sorted(found)]


def _names(folder: Path) -> Iterator[Path]:
    """Everything below a folder but what is hidden, or was put there by a tool."""
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(
            name
            for name in folders
            if not (name.startswith(".") or name in _NOT_SOURCES or (here / name / "pyvenv.cfg").exists())
        )
        yield from (here / name for name in sorted(names) if not name.startswith("."))


def _text(path: Path) -> str:
    """What a text file says, with line ends as a model writes them; nothing if it is no text."""
    try:
        data = path.read_bytes()
        return "" if b"\0" in data else data.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError):
        return ""
