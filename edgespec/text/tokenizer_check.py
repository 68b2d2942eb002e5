"""Refuse an untrusted ``tokenizer.json`` that makes texts much longer. A normalizer may double a text forty times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from edgespec import files
from edgespec.errors import BundleError

_LONGEST_PREFIX = 64
"""characters that a step may put in front of a text. Known steps put one."""
_MOST_GROWTH = 64
"""times that all replacements of a tokenizer together may lengthen a text. Known models put one mark for a space."""
_MOST_STEPS = 64
"""steps of a normalizer or a decoder. Known ones have at most 10."""
_FIXED_MAPS = ("Precompiled", "NFKC", "NFKD", "NFC", "NFD", "ByteLevel", "Lowercase", "BertNormalizer")
_MOST_MAPS = 8
"""maps with a table of their own, which may turn a character into 18"""
_ONCE = ("Precompiled", "ByteLevel")
"""maps that lengthen a text again when they run again. The table of the first is the tokenizer's own."""


def require_file(path: Path) -> None:
    """Raises BundleError if the path is not a file, or is larger than a tokenizer can be."""
    if not path.is_file():
        raise BundleError(f"{path} is not a file", hint="export or pull the model again")
    if (size := path.stat().st_size) > files.MOST_TOKENIZER_BYTES:
        most = f"{files.MOST_TOKENIZER_BYTES >> 20} MiB"
        raise BundleError(f"{path} is too large", got=f"{size >> 20} MiB", allowed=most)


def require_modest(engine: Any) -> None:
    """Raises BundleError for a ``tokenizers.Tokenizer`` whose normalizer or decoder may make a text much longer."""
    for part in (engine.normalizer, engine.decoder):
        if part is None:
            continue
        steps = list(_steps(json.loads(part.__getstate__())))
        kinds = [step.get("type") for step in steps]
        if len(steps) > _MOST_STEPS or sum(kind in _FIXED_MAPS for kind in kinds) > _MOST_MAPS:
            raise BundleError("tokenizer has too many steps", got=len(steps), allowed=f"{_MOST_STEPS} steps")
        if repeated := next((kind for kind in _ONCE if kinds.count(kind) > 1), None):
            raise BundleError("tokenizer has a step more than once", got=repeated, allowed="once")
        if any(len(step.get("prepend") or "") > _LONGEST_PREFIX for step in steps):
            raise BundleError("tokenizer puts too much in front of a text", allowed=f"{_LONGEST_PREFIX} characters")
        if (growth := prod(_growth(step) for step in steps)) > _MOST_GROWTH:
            raise BundleError(
                "tokenizer makes texts much longer", got=f"{growth} times", allowed=f"{_MOST_GROWTH} times"
            )


def _steps(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if part.get("type") == "Sequence":
        for step in part.get("normalizers") or part.get("decoders") or ():
            yield from _steps(step)
    else:
        yield part


def _growth(step: dict[str, Any]) -> int:
    """How many times as long a replacement makes a text, at most.

    >>> _growth({"type": "Replace", "pattern": {"String": "ab"}, "content": "abcde"})
    3
    """
    if step.get("type") != "Replace":
        return 1
    found = len(step["pattern"].get("String") or "a")  # a regular expression may find every character
    between = 0 if step["pattern"].get("String") else 1  # or every place between two
    return max(1, -(-len(step["content"]) // found) + between)
