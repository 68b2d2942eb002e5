"""What a model writes, on its way to stdout. A terminal acts on control characters, and a pipe does not."""

from __future__ import annotations

import sys

_SPELT = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""C0, DEL and C1: colours, the cursor, the title, and what a terminal answers as if it were typed. Valid in JSON."""


def write(text: str) -> None:
    """Write at once: on a terminal with control characters spelt out, else as it is."""
    sys.stdout.write(text.translate(_SPELT) if sys.stdout.isatty() else text)
    sys.stdout.flush()
