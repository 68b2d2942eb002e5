"""The choice of a schedule: overlapped (``decode.overlapped``) only where it was measured to be faster.

Whoever measures both stores the result here: ``edgespec bench overlapped``, and the planner. A load reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgespec import cache
from edgespec.backends.cores import Threads, available_cores, kind_of, kinds, shared
from edgespec.errors import SettingError
from edgespec.machine import measurement_store

if TYPE_CHECKING:
    from edgespec.backends.engine_model import PaddedModel
    from edgespec.protocols import Model

_LEAST_GAIN = 1.03
"""Two measurements of one schedule differ by as much."""


@dataclass(frozen=True)
class Schedules:
    """Seconds of a token under each schedule, each with the cores that it has to itself: synchronous with all."""

    synchronous_s: float
    overlapped_s: float

    def __post_init__(self) -> None:
        if not all(0 < seconds < inf for seconds in (self.synchronous_s, self.overlapped_s)):
            raise ValueError("not the times of schedules")

    @property
    def gain(self) -> float:
        """How many times as fast overlapped is."""
        return self.synchronous_s / self.overlapped_s


def threads(device: str, draft_device: str | None) -> Threads | None:
    """How the models of an overlapped pair share the CPU. None: they are not both there, or each has cores
    of its own kind. Raises SettingError if it has one core."""
    beside = draft_device or device
    used = {kind_of(device), kind_of(beside)}
    if not device.startswith("CPU") or not beside.startswith("CPU") or used == {"P", "E"}:
        return None
    [kind] = used if len(used) == 1 else [None]
    found = shared(available_cores() if kind is None else len(kinds()[kind]))
    if found is None:
        raise SettingError(
            "the overlapped schedule needs two cores, or a device for the draft: cores",
            got=1,
            hint="use --schedule synchronous, or --draft-device",
            setting="schedule",
        )
    return found


def overlapped_is_faster(target: Model, draft: Model | None) -> bool:
    """Whether it was measured so for this pair, as it is loaded for the synchronous schedule. Measures nothing."""
    found = None if draft is None else measurement_store.read(_file_of(target, draft), Schedules)
    return found is not None and found.gain > _LEAST_GAIN


def remember(target: Model, draft: Model, measured: Schedules) -> None:
    """Store what was measured for a pair, as the two are loaded for the synchronous schedule."""
    measurement_store.write(_file_of(target, draft), measured)


def _file_of(target: Model, draft: Model) -> Path:
    of_target, of_draft = cast("PaddedModel", target), cast("PaddedModel", draft)
    kind = f"schedules-{cache.VERSIONS['schedules']}-{of_target.numerics}-{of_draft.capabilities.device}"
    return measurement_store.file_of(f"{kind}-{of_draft.fingerprint}", of_target.fingerprint)
