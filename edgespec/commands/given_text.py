"""Texts that the user gives: a file, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from edgespec.errors import SettingError


def read(file: str, most_bytes: int) -> str:
    """A text file, or standard input for ``-``. Raises SettingError for anything else."""
    name = "standard input" if file == "-" else file
    try:
        if file == "-":
            data = sys.stdin.buffer.read(most_bytes + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise SettingError(f"cannot read {name}", got=getattr(error, "strerror", None) or str(error)) from error
    if len(data) > most_bytes:
        raise SettingError(f"{name} is too long", got="more", allowed=f"{most_bytes} bytes")
    if b"\0" in data:
        raise SettingError(f"{name} is a binary file", got=f"a zero byte at {data.index(0)}", allowed="a text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingError(
            f"{name} is not valid UTF-8",
            got=f"byte {error.object[error.start]:#04x} at {error.start}",
            hint="convert it to UTF-8 first",
        ) from error
