"""Whether other programs disturb a measurement: it is noisy while they keep cores busy."""

from __future__ import annotations

from contextlib import suppress
from time import perf_counter, sleep

BUSY_CORES = 0.3
"""cores used by other programs. More than this makes a measurement noisy."""


class Others:
    """The cores that other programs keep busy from now on; 0 if the system does not tell."""

    def __init__(self) -> None:
        self._began, self._began_s = _others_s(), perf_counter()

    def cores(self) -> float:
        return max(0.0, _others_s() - self._began) / max(perf_counter() - self._began_s, 1e-3)


def busy(seconds: float) -> bool:
    """Whether other programs are running now. Looks for ``seconds``."""
    others = Others()
    sleep(seconds)
    return others.cores() > BUSY_CORES


def _others_s() -> float:
    """Seconds of work of all cores since the system started, without the work of this process."""
    import psutil

    with suppress(OSError, psutil.Error):
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        return float(times.user + times.system + getattr(times, "nice", 0.0) - own.user - own.system)
    return 0.0
