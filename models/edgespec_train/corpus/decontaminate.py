"""Keep benchmark prompts out of the corpus: a draft must not be evaluated on its training texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgespec.bench.prompts import OWN, SUMMARIES_AND_STORIES
from edgespec.errors import SettingError

_RUN = 10
"""words in a row that a text may not share with a benchmark"""
_SHORTEST = 3
"""words of the shortest prompt that is left out as a whole"""


class Decontaminator:
    """Finds texts with ten words in a row of a benchmark, and texts equal to a shorter prompt of it.

    The prompts that ship with edgespec are always among the benchmarks.

    >>> own = Decontaminator([])
    >>> own.add("What is the capital of France?")
    >>> own.matches("what is the Capital of France"), own.matches("What is the capital of France like in May?")
    (True, False)
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._runs: set[str] = set()
        self._whole: set[str] = set()
        for file in (OWN, SUMMARIES_AND_STORIES, *files):
            for text in _texts(file):
                self.add(text)

    def add(self, text: str) -> None:
        words = _words(text)
        self._runs.update(_runs(words))
        if _SHORTEST <= len(words) < _RUN:
            self._whole.add(" ".join(words))

    def matches(self, text: str) -> bool:
        words = _words(text)
        return " ".join(words) in self._whole or not self._runs.isdisjoint(_runs(words))


def runs_of(text: str) -> Iterator[str]:
    """Its words, ten in a row."""
    return _runs(_words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: list[str]) -> Iterator[str]:
    for begin in range(len(words) - _RUN + 1):
        yield " ".join(words[begin : begin + _RUN])


def _texts(path: Path) -> Iterator[str]:
    """Every string in each line of a .jsonl, or the whole of another file."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".jsonl":
            yield text
            return
        for line in text.splitlines():
            if line.strip():
                yield from _strings(json.loads(line))
    except (OSError, ValueError) as error:
        raise SettingError(f"cannot read the prompts to leave out: {path}", got=error) from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
