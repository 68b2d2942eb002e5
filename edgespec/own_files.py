"""Small files of ours: whole or not at all, and some of them for the user's eyes only.

On Windows a file in the user's folder is the user's alone, and modes mean nothing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when the block ends well, and is gone when it does not."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb", opener=private_opener if private else None) as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def private_opener(path: str, flags: int) -> int:
    """For ``open``: a file that it makes is the user's alone from the first moment on."""
    return os.open(path, flags, mode=0o600)


def make_private(folder: Path, file: Path) -> None:
    """Have a folder that only the user can look into, and mend the mode of a file in it that is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.name == "posix":
        folder.chmod(0o700)
        with suppress(FileNotFoundError):
            file.chmod(0o600)
