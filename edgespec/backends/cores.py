"""The CPU's cores: how many there are for a model, and how two models that run at once share them.

A hybrid CPU has fast cores (P) and frugal ones (E). They are devices of their own: CPU.P and CPU.E. CPU is all of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Of the cores, what a draft gets that runs beside its target: its steps are many and narrow, and a wide forward of the
# target gains more by a core.
_DRAFT_SHARE = 4


def available_cores() -> int:
    """Physical cores that this process may run on."""
    import psutil

    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(psutil.cpu_count(logical=False) or len(allowed), len(allowed))


@dataclass(frozen=True, slots=True)
class Threads:
    """How many threads each model of a pair gets, so that both can run at once."""

    target: int
    draft: int


def shared(cores: int) -> Threads | None:
    """None if there is one core only.

    >>> shared(2), shared(8), shared(1)
    (Threads(target=1, draft=1), Threads(target=6, draft=2), None)
    """
    draft = max(1, cores // _DRAFT_SHARE)
    return Threads(cores - draft, draft) if cores > draft else None


_LINUX = {"P": "cpu_core", "E": "cpu_atom"}
"""what Linux calls the kinds of an Intel CPU; there are such folders on a hybrid one only"""


def kind_of(device: str) -> str | None:
    """The kind of cores that a device names: P, E, or None for all cores and for another device.

    >>> kind_of("CPU.E"), kind_of("CPU"), kind_of("GPU.1")
    ('E', None, None)
    """
    name, _, part = device.partition(".")
    return part if name == "CPU" and part in _LINUX else None


@cache
def kinds() -> Mapping[str, tuple[int, ...]]:
    """One processor of each core that this process may run on, by kind. Empty: all cores are of one kind."""
    found = _of_windows() if sys.platform == "win32" else of_linux(Path("/sys/devices"))
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    here = {kind: tuple(p for p in each if allowed is None or p in allowed) for kind, each in found.items()}
    return here if all(here.values()) else {}


def of_linux(folder: Path) -> dict[str, tuple[int, ...]]:
    """folder: /sys/devices."""
    try:
        listed = {kind: (folder / name / "cpus").read_text(encoding="ascii") for kind, name in _LINUX.items()}
        found = {}
        for kind, text in listed.items():
            firsts: dict[str, int] = {}  # by core: its other processors are the same core again
            for processor in processors_of(text):
                core = folder / f"system/cpu/cpu{processor}/topology/core_id"
                firsts.setdefault(core.read_text(encoding="ascii"), processor)
            found[kind] = tuple(firsts.values())
        return found
    except (OSError, ValueError):
        return {}


def processors_of(text: str) -> list[int]:
    """
    >>> processors_of("0-3,8"), processors_of("")
    ([0, 1, 2, 3, 8], [])
    """
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def of_cpu_sets(data: bytes) -> dict[str, tuple[int, ...]]:
    """data: the array of SYSTEM_CPU_SET_INFORMATION that Windows gives. Of its efficiency classes the highest is P."""
    firsts: dict[tuple[int, int], int] = {}  # by class and core
    at = 0
    while at + 19 <= len(data) and (size := int.from_bytes(data[at : at + 4], "little")) > 0:
        processor, core, efficiency = data[at + 14], data[at + 15], data[at + 18]
        firsts.setdefault((efficiency, core), processor)
        at += size
    classes = sorted({efficiency for efficiency, _ in firsts})
    if len(classes) < 2:
        return {}
    fast = [processor for (efficiency, _), processor in firsts.items() if efficiency == classes[-1]]
    frugal = [processor for (efficiency, _), processor in firsts.items() if efficiency != classes[-1]]
    return {"P": tuple(fast), "E": tuple(frugal)}


def _of_windows() -> dict[str, tuple[int, ...]]:
    if sys.platform != "win32":
        return {}
    import ctypes
    from ctypes import wintypes

    length = wintypes.ULONG()
    ask = ctypes.windll.kernel32.GetSystemCpuSetInformation
    ask(None, 0, ctypes.byref(length), None, 0)
    buffer = ctypes.create_string_buffer(length.value)
    return of_cpu_sets(buffer.raw) if ask(buffer, length, ctypes.byref(length), None, 0) else {}
