"""Words for who runs the server, on stderr. Nobody may read them any more: an editor that has started the server may be
closed while another one uses it. No answer ends for that."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress

from edgespec.errors import printable
from edgespec.server.refusals import Refusal, refusal


def write(text: str) -> None:
    with suppress(OSError, ValueError):  # closed at the other end, or here
        print(text, end="", file=sys.stderr, flush=True)


def report(error: BaseException) -> None:
    """Where it failed in code, and not the message, which may hold a text."""
    where = "".join(traceback.format_tb(error.__traceback__)[-3:])
    write(f"edgespec: {type(error).__name__}\n{where}")


def reported(error: Exception) -> Refusal:
    """What a client is told of an error. One that is nobody's but ours is reported."""
    found = refusal(error)
    if found.told != found.message:
        write(f"edgespec: {printable(found.told)}\n")
    if found.status == 500:
        report(error)
    return found
