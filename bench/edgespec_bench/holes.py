"""Holes cut from Python's own library, to ask models for what is missing.

A hole begins at a random place of a random line and ends at the end of that line, or two lines further down. Modules
and seeds are listed here, and their text comes with every Python. So another version of Python has other holes, and
models have most likely read this library: the figures compare runtimes, and not models.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random

from edgespec.errors import SettingError

MODULES = (
    *("argparse", "ast", "bdb", "calendar", "cmd", "configparser", "contextlib", "copy", "csv", "dataclasses"),
    *("difflib", "enum", "fractions", "functools", "gettext", "heapq", "inspect", "ipaddress", "pathlib", "pprint"),
    *("shlex", "statistics", "tarfile", "textwrap", "zipfile"),
)
SEEDS = range(4)
"""holes of each module"""
_BEFORE, _BEHIND = 40, 20
"""lines that a runtime is given around a hole. Most of a run's time is to read them: more would make it longer."""
_LEAST = 12
"""characters of a line that is cut, without its indentation"""


@dataclass(frozen=True)
class Hole:
    """prefix: whole lines. typed: what stands before the hole on its line. missing: what belongs into it."""

    module: str
    seed: int
    prefix: str
    typed: str
    suffix: str
    missing: str


def holes(count: int) -> list[Hole]:
    """The first holes of the list: one of each module, then the next of each."""
    found = [cut(name, seed) for seed in SEEDS for name in MODULES]
    if count > len(found):
        raise SettingError("holes", got=count, allowed=f"1 to {len(found)}")
    return found[:count]


def cut(module: str, seed: int, *, before: int = _BEFORE, behind: int = _BEHIND) -> Hole:
    """A hole in a module of the standard library. The same module and seed give the same hole, in so many lines."""
    spec = find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise SettingError(f"this Python has no source of its module {module}")
    origin = Path(spec.origin)
    package = origin.name == "__init__.py"
    text = origin.read_text(encoding="utf-8")
    lines = text.split("\n")
    random = Random(f"{origin.parent.name if package else module} {seed}")
    usable = [number for number in _statements(text) if len(lines[number].strip()) >= _LEAST]
    number = random.choice(usable)
    line = lines[number]
    indent = len(line) - len(line.lstrip())
    column = indent if seed % 2 else random.randrange(indent, len(line) - 4)
    last = number + (2 if seed % 4 == 3 else 0)
    return Hole(
        module,
        seed,
        prefix="".join(f"{each}\n" for each in lines[max(0, number - before) : number]),
        typed=line[:column],
        suffix="\n" + "\n".join(lines[last + 1 : last + 1 + behind]) + "\n",
        missing="\n".join([line[column:], *lines[number + 1 : last + 1]]),
    )


def _statements(text: str) -> list[int]:
    """Lines, counted from 0, on which a statement within a function or a class begins. Texts are no statements."""
    found = set()
    for outer in ast.walk(ast.parse(text)):
        if isinstance(outer, ast.FunctionDef | ast.ClassDef):
            for inner in ast.walk(outer):
                if isinstance(inner, ast.stmt) and inner is not outer and not _is_text(inner):
                    found.add(inner.lineno - 1)
    return sorted(found)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
