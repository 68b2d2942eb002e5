"""The text files of a folder as token ids, for ``drafters.retrieval``. The files are never written."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

from edgespec.errors import SettingError

_NOT_SOURCES = {"node_modules", "__pycache__", "site-packages"}


class Encoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class FolderTexts:
    """texts: token ids of each file that was read, newest first. left_out: number of files that were not read, by
    reason."""

    texts: list[list[int]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """
        >>> print(FolderTexts([[1, 2], [3]], Counter({"too large": 2, "no text": 1})))
        2 files, 3 tokens; left out: 2 too large, 1 no text
        """
        read = f"{len(self.texts)} files, {sum(map(len, self.texts))} tokens"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())
        return f"{read}; left out: {reasons}" if reasons else read


def require_folder(folder: str | Path) -> Path:
    """The path of a folder. Raises SettingError if there is no such folder."""
    if not Path(folder).is_dir():
        raise SettingError(
            "folder to draft from", got=str(Path(folder)), allowed="an existing folder", setting="draft_from"
        )
    return Path(folder)


def read_folder(
    folder: str | Path,
    tokenizer: Encoder,
    *,
    max_tokens: int = 1_000_000,
    max_files: int = 20_000,
    max_file_bytes: int = 1 << 18,
) -> FolderTexts:
    """The text files below a folder, newest first, until there are ``max_tokens``.

    Ignored: hidden files and folders, links, virtual environments, node_modules and the like. At most ``max_files`` are
    considered. Left out and counted: files larger than ``max_file_bytes``, files that are not UTF-8 text, files that
    cannot be read, and files beyond ``max_tokens``. Raises SettingError if there is no such folder, or no text in it.
    """
    found = FolderTexts()
    room = max_tokens
    for path in _newest_first(require_folder(folder), max_files, max_file_bytes, found.left_out):
        if not room:
            found.left_out["beyond the limit of tokens"] += 1
        elif (text := _text(path, found.left_out)) and (tokens := tokenizer.encode(text)[:room]):
            found.texts.append(tokens)
            room -= len(tokens)
    if not found.texts:
        hint = "name a folder with source code or other texts"
        got = f"{folder} ({found})" if found.left_out else str(folder)
        raise SettingError(
            "no text to draft from", got=got, allowed="a folder of UTF-8 files", hint=hint, setting="draft_from"
        )
    return found


def _newest_first(folder: Path, most: int, max_bytes: int, left_out: Counter[str]) -> list[Path]:
    """Regular files that may hold text."""
    found: list[tuple[float, Path]] = []
    names = _names(folder, left_out)
    for path in islice(names, most):
        try:
            about = path.lstat()
        except OSError:  # the file was removed, or we may not read it
            left_out["unreadable"] += 1
            continue
        if not stat.S_ISREG(about.st_mode):
            continue
        if about.st_size > max_bytes:
            left_out["too large"] += 1
        else:
            found.append((-about.st_mtime, path))
    with suppress(StopIteration):
        next(names)
        left_out["or more beyond the limit of files"] += 1
    return [path for _, path in sorted(found)]


def _names(folder: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Everything below a folder except hidden files and what tools put there. A folder's own files come first."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        folders = []
        try:
            with os.scandir(here) as entries:
                found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        except OSError:  # not readable, removed, or too deep for the system
            left_out["unreadable"] += 1
            continue
        for name, is_folder in found:
            if name.startswith("."):
                continue
            if not is_folder:
                yield here / name
            elif name not in _NOT_SOURCES and not os.path.exists(here / name / "pyvenv.cfg"):  # noqa: PTH110 - never raises
                folders.append(here / name)
        waiting += reversed(folders)


def _text(path: Path, left_out: Counter[str]) -> str:
    """Content of a text file, with line ends as a model writes them. Empty if the file is not text."""
    try:
        data = path.read_bytes()
        if b"\0" not in data:
            return data.decode("utf-8-sig").replace("\r\n", "\n")
        left_out["no text"] += 1
    except OSError:
        left_out["unreadable"] += 1
    except UnicodeDecodeError:
        left_out["no text"] += 1
    return ""
