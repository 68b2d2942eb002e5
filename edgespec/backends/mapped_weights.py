"""Weights that an engine has copied from a mapped file need not stay in memory twice.

OpenVINO's CPU plugin maps the .bin of an IR and packs the weights into an order of its own. The mapping lives as long
as the model, and its pages stay with the process although nothing reads them again. Linux takes them back on request: a
page that is read after all comes from the file, as it did at first.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

_MADV_DONTNEED = 4


def release(file: Path) -> None:
    """Give back the memory of a file that this process has mapped to read. On other systems this does nothing."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError, ValueError):  # no /proc, another libc: the pages stay
        stat = file.stat()
        # A number of another device may be a library's, whose relocated pages would be lost.
        wanted = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}", str(stat.st_ino)
        libc = ctypes.CDLL(None)
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            place, rights, _, *is_at = line.split(maxsplit=5)[:5]
            if tuple(is_at) == wanted and rights.startswith("r-"):  # what may be written may have been changed
                begin, end = (int(address, 16) for address in place.split("-"))
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)
