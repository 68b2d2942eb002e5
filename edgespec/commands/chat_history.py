"""The user's input to ``edgespec chat``, kept for the next session in a file that only the user can read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory

from edgespec.console import note
from edgespec.own_files import make_private, private_opener


class PrivateHistory(FileHistory):
    """Stays in memory if the file cannot be read or written. A full disk does not end a conversation."""

    def __init__(self, file: Path) -> None:
        self._file, self._told = file, False
        super().__init__(str(file))
        try:
            make_private(file.parent, file)
        except OSError as error:
            self._tell(error)

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except (OSError, ValueError) as error:
            self._tell(error)
            return []

    def store_string(self, string: str) -> None:
        try:
            with open(self._file, "ab", opener=private_opener):  # the file is private before anything is in it
                pass
            super().store_string(string)
        except OSError as error:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        if not self._told:
            reason = getattr(error, "strerror", None) or error
            note(f"the history of this chat is not kept: {self._file}: {reason}")
        self._told = True
