"""The CPU's cores: how many there are for a model, and how two models that run at once share them."""

from __future__ import annotations

import os
from dataclasses import dataclass

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
