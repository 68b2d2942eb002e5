"""Writes a model's text to stdout. A terminal would act on control characters; a pipe does not."""

from __future__ import annotations

import sys

_SPELT = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""C0, DEL and C1. They set colours, cursor and title, or make the terminal answer as if typed. Valid in JSON."""


def write(text: str) -> None:
    """Write at once. On a terminal control characters are spelt out, elsewhere the text stays as it is."""
    sys.stdout.write(text.translate(_SPELT) if sys.stdout.isatty() else text)
    sys.stdout.flush()
