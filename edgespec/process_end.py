"""The end of a process in which a thread is still inside an engine, such as a load that nobody waits for.

The interpreter ends such a thread where it comes back from the engine. That takes down frames of C++ which must not be
taken down, so the process would end with "terminate called without an active exception" and the status of a crash.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress

PREFIX = "edgespec-"
"""of the names of our threads"""


def end_beside_threads(status: int) -> None:
    """End the process here, if a thread of ours would be ended. What is done at the end of every process is done."""
    if not any(thread.daemon and thread.name.startswith(PREFIX) for thread in threading.enumerate()):
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or its reader is gone
            stream.flush()
    os._exit(status)
