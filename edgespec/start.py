"""What begins first in a process of ``edgespec``: it imports nothing before it can be interrupted in order."""

from __future__ import annotations

import sys


def entry() -> None:
    """Run the command line as a process of its own, and end it in order. Ctrl-C while it is imported: 130."""
    try:
        status = _status()
    except KeyboardInterrupt:
        if sys.stderr is not None:  # closed by the caller
            sys.stderr.write("\n")
        status = 130
    sys.exit(status)


def _status() -> str | int | None:
    """Of the command that the arguments name. Ends the process itself beside threads of ours."""
    from edgespec import cli
    from edgespec.process_end import end_beside_threads

    status: str | int | None = 0
    try:
        cli.main()
    except SystemExit as ended:
        status = ended.code
    end_beside_threads(status if isinstance(status, int) else 0 if status is None else 1)
    return status
