"""What a token costs in energy: read from the CPU's own counter where that is allowed, else by a model.

The model: what a device takes while it computes, times how long it does. Its watts are assumed, those of a laptop. So
it orders plans by device and by time, and its joules are no measurement. Screen and memory are left out.
"""

from __future__ import annotations

from pathlib import Path

from edgespec.stats import Stats

WATTS = {"CPU": 25.0, "GPU": 20.0, "NPU": 6.0}
"""Of a device that computes; assumed, as in simulate/figures.toml. Another device counts as a GPU."""
_COUNTER = Path("/sys/class/powercap/intel-rapl:0")
"""RAPL of the first package. Linux lets root read it; other systems have none."""


def read_joules(counter: Path = _COUNTER) -> float | None:
    """What the CPU's counter says now, or None where it cannot be read."""
    try:
        return int((counter / "energy_uj").read_text(encoding="ascii")) / 1e6
    except (OSError, ValueError):
        return None


def joules_between(before: float | None, after: float | None, counter: Path = _COUNTER) -> float | None:
    """What was used between two readings. The counter begins again at its range."""
    if before is None or after is None:
        return None
    if after >= before:
        return after - before
    try:
        range_j = int((counter / "max_energy_range_uj").read_text(encoding="ascii")) / 1e6
    except (OSError, ValueError):
        return None
    return after + range_j - before


def modelled_joules(stats: Stats, device: str, draft_device: str | None) -> float:
    """Of decoding, by the model. The overlapped schedule books no time of its draft: that runs all the while."""
    target_s = sum(round_.target_s for round_ in stats.decoding)
    draft_s = target_s if stats.schedule == "overlapped" else sum(round_.draft_s for round_ in stats.decoding)
    same = draft_device is None or _kind(draft_device) == _kind(device)
    if same and stats.schedule == "overlapped":  # they share its cores
        return target_s * _watts(device)
    return target_s * _watts(device) + draft_s * _watts(draft_device or device)


def _kind(device: str) -> str:
    return device.split(".")[0]


def _watts(device: str) -> float:
    return WATTS.get(_kind(device), WATTS["GPU"])
