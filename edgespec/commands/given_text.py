"""Texts that the user gives: a file, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from edgespec.errors import SettingError


def read(file: str, most_bytes: int, setting: str | None = None) -> str:
    """A text file, or standard input for ``-``. Raises SettingError for anything else. setting: whose file it is."""
    try:
        return _read(file, most_bytes)
    except SettingError as error:
        error.setting = setting
        raise


def _read(file: str, most_bytes: int) -> str:
    name = "standard input" if file == "-" else file
    try:
        if file == "-":
            data = sys.stdin.buffer.read(most_bytes + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingError(f"cannot read {name or repr(name)}: {reason}", hint="give a text file") from error
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
