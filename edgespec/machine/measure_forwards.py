"""Costs of forwards on this machine: measured at the first load of a model, read from the store at any later one.

There are two measurements of a model: what its forwards cost (``forward_times``), and the widths at which they are
exact (``exact_widths``). There is one of a drafting head: what a run of it costs (``call_seconds``). This module
decides whether a stored one still holds. ``adaptive.calibration`` has the stopwatch, and ``measurement_store`` has the
files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING

from edgespec import cache
from edgespec.adaptive import calibration
from edgespec.adaptive.calibration import Beside, ForwardTimes
from edgespec.backends.exact_widths import ExactWidths, Tried, find_exact_widths, guess_exact_widths
from edgespec.machine import measurement_store
from edgespec.machine.other_programs import BUSY_CORES, Others, busy
from edgespec.machine.progress_line import Say

if TYPE_CHECKING:
    from edgespec.backends.engine_model import PaddedModel
    from edgespec.backends.openvino.static_graph import OpenVINOStaticGraph

_LOOK_S = 0.2
"""how long to look whether other programs are still running"""
_GLANCED, _GLANCED_TOKENS = (1, 2, 4, 12), 64
"""widths that are timed briefly, and the rows before them"""


@dataclass(frozen=True)
class Calibration:
    """other_cores: cores that other programs used while the times were measured."""

    times: ForwardTimes
    other_cores: float

    def __post_init__(self) -> None:
        if not 0 <= self.other_cores < inf:
            raise ValueError("not a number of cores")


@dataclass(frozen=True)
class CallTime:
    """Seconds of a head's run. other_cores: as in ``Calibration``."""

    seconds: float
    other_cores: float

    def __post_init__(self) -> None:
        if not (0 < self.seconds < inf and 0 <= self.other_cores < inf):
            raise ValueError("not a time, or not a number of cores")


def exact_widths(model: PaddedModel, say: Say, *, brief: bool = False) -> ExactWidths:
    """The widths at which a model is exact. It must run unpadded (see ``find_exact_widths``).

    An interrupted search goes on where it stopped. brief: guess what is not known, and store nothing.
    """
    file = measurement_store.file_of(f"exact_widths-{cache.VERSIONS['exact_widths']}", model.fingerprint)
    trials = file.with_suffix(".tried")

    def known() -> ExactWidths | None:
        found = measurement_store.read(file, ExactWidths)
        return found if found and found.most <= model.max_width else None

    if brief and (likely := known() or guess_exact_widths(model)):
        return likely

    def find() -> ExactWidths:
        what = f"measuring which widths are exact on {model.capabilities.backend} (one-time)"
        say(what, 0.0)

        def keep(tried: Tried, share: float) -> None:
            measurement_store.write(trials, tried)
            say(what, share)

        found = find_exact_widths(model, measurement_store.read(trials, Tried), keep)
        measurement_store.remove(trials)
        say(what, 1.0)
        return found

    return measurement_store.remembered(file, known, find)


def forward_times(
    model: PaddedModel,
    say: Say,
    *,
    beside: Beside | None = None,
    target: PaddedModel | None = None,
    brief: bool = False,
) -> ForwardTimes:
    """The measured times of a model's forwards. A draft is measured in turns with ``target``, by ``beside``.

    Times that other programs disturbed are measured again once those programs stop. brief: glance at what is not known,
    and store nothing.
    """
    beside_it = f"-{_of_target(target)}" if target else ""
    version = cache.VERSIONS["forward_times"]
    kind = f"forward_times-{version}-{model.numerics}-{model.min_width}-{model.max_width}{beside_it}"
    file = measurement_store.file_of(kind, model.fingerprint)

    def known() -> Calibration | None:
        found = measurement_store.read(file, Calibration)
        if found is None or found.times.width_step != model.width_step:
            return None
        if found.times.widths[0] < model.min_width or found.times.widths[-1] > model.max_width:
            return None
        return found if _is_quiet(found.other_cores) else None

    if brief:
        found = known()
        return found.times if found else _glanced(model, beside)

    def find() -> Calibration:
        what = f"measuring forwards of the {'draft' if beside else 'target'} (one-time)"
        say(what, 0.0)
        others = Others()
        times = _measured(model, beside, lambda share: say(what, share))
        say(what, 1.0)
        return Calibration(times, others.cores())

    return measurement_store.remembered(file, known, find).times


def call_seconds(
    head: OpenVINOStaticGraph, say: Say, *, beside: Beside, target: PaddedModel, brief: bool = False
) -> float:
    """The measured time of a head's run, in turns with ``target``, by ``beside``. brief: store nothing, since the time
    that is known of the target was only glanced at."""
    file = measurement_store.file_of(f"call-{cache.VERSIONS['call']}-{_of_target(target)}", head.fingerprint)

    def known() -> CallTime | None:
        found = measurement_store.read(file, CallTime)
        return found if found is not None and _is_quiet(found.other_cores) else None

    def find() -> CallTime:
        what = "measuring the drafting head (one-time)"
        say(what, 0.0)
        others = Others()
        seconds = calibration.measure_call(head.repeat, perf_counter, beside)
        say(what, 1.0)
        return CallTime(seconds, others.cores())

    if brief:
        return (known() or find()).seconds
    return measurement_store.remembered(file, known, find).seconds


def _of_target(target: PaddedModel) -> str:
    return f"{target.numerics}-{target.fingerprint}"


def _is_quiet(other_cores: float) -> bool:
    """Whether a measurement beside other programs stands: they used little, or they run still."""
    return other_cores <= BUSY_CORES or busy(_LOOK_S)


def _measured(model: PaddedModel, beside: Beside | None, done: Callable[[float], None]) -> ForwardTimes:
    capacity, model.cache.capacity = model.cache.capacity, max(model.cache.capacity, calibration.ROWS_NEEDED)
    least, step = model.min_width, model.width_step
    try:
        return calibration.measure(model, perf_counter, least=least, step=step, beside=beside, done=done)
    finally:
        model.cache.capacity = capacity


def _glanced(model: PaddedModel, beside: Beside | None) -> ForwardTimes:
    """Of few widths, behind one context. A draft's count as they are beside the target."""
    tokens = [0] * _GLANCED_TOKENS
    least, step = model.min_width, model.width_step
    padded = {-(-max(width, least) // step) * step for width in _GLANCED}
    widths = sorted(width for width in padded if width <= model.capabilities.max_width)

    def read_s() -> float:
        model.cache.reset()
        began = perf_counter()
        model.prefill(tokens)
        return (perf_counter() - began) / len(tokens)

    read_s()  # the first one sets things up
    times = calibration.glance(model, perf_counter, widths, step=step, read_s=read_s() if beside else 0.0)
    if beside is not None:
        times = calibration.lengthened(times, _beside_s(times.widths[0], model, beside))
    model.cache.reset()
    return times


def _beside_s(width: int, draft: PaddedModel, beside: Beside) -> list[float]:
    """Seconds of a draft's forwards, each behind one of the target's."""
    taken = []
    for _ in range(3):
        beside.forward()
        length, began = draft.cache.length, perf_counter()
        draft.forward([0] * width)
        taken.append(perf_counter() - began)
        draft.cache.crop(length)
    return taken
