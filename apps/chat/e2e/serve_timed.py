"""``edgespec serve`` that prints when the library's first text of each answer is there: "first SECONDS", since 1970."""

import sys
import time

from edgespec.cli import main
from edgespec.generation import Stream

_next = Stream.__next__


def timed(self: Stream) -> str:
    piece = _next(self)
    if piece and not hasattr(self, "told"):
        self.told = True  # type: ignore[attr-defined]
        print(f"first {time.time():.4f}", flush=True)
    return piece


Stream.__next__ = timed  # type: ignore[method-assign]
sys.argv[1:] = ["serve", "--port", "0", "--yes"]
main()
