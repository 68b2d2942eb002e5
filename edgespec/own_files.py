"""Small files that edgespec writes: complete or not at all, and some of them private to the user.

On Windows only the user can read files in the user's folder, and file modes mean nothing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from edgespec.errors import SettingError, wrap_errors


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A temporary file. It replaces ``path`` if the block succeeds, and is removed if it fails."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb", opener=private_opener if private else None) as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def require_place(file: Path, what: str) -> None:
    """Raises SettingError for a file that cannot be written, before minutes of work are lost on it. Nothing stays.

    what: the file is, in the error. Folders that are missing are made with the file, later.
    """
    with wrap_errors(SettingError, f"cannot write {what} {file}", hint="name another file"):
        if file.is_dir():
            raise SettingError(what, got=str(file), allowed="a file")
        made: list[Callable[[], None]] = []  # removes it again
        try:
            for folder in reversed([*takewhile(lambda folder: not folder.exists(), file.parents)]):
                if not folder.exists():  # "new/.." does, once "new" does
                    folder.mkdir()
                    made.append(folder.rmdir)
            place = file.resolve()  # a link may lead to a file that is not there yet
            try:
                place.open("xb").close()
                made.append(place.unlink)
            except FileExistsError:
                place.open("ab").close()
        finally:
            for remove in reversed(made):
                with suppress(OSError):  # somebody else uses it by now
                    remove()


def private_opener(path: str, flags: int) -> int:
    """An opener for ``open``: a new file is private to the user from the start."""
    return os.open(path, flags, mode=0o600)


def make_private(folder: Path, file: Path) -> None:
    """Make a folder that only the user can read, and make an existing file in it private too."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.name == "posix":
        folder.chmod(0o700)
        with suppress(FileNotFoundError):
            file.chmod(0o600)
