"""What a forward takes on a device: measured times, else a roofline with a price for each row.

A forward reads all weights and the rows of its context, at what the device reads from memory, or computes for longer
than that. Each further row costs a share of the first one: kernels for a few rows do not reach the roofline.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

from edgespec.simulate.figures import Device, Forwards, ModelSize

_PEAK_SHARE = 0.3
"""of its published peak, what a device reaches with few rows. Assumed; it decides from some thirty rows on."""


@dataclass(frozen=True)
class Forward:
    """seconds: with the bus to itself. call_s: of these, before it reads anything. gb_per_s: what it reads after."""

    seconds: float
    call_s: float = 0.0
    gb_per_s: float = 0.0


class Engine(Protocol):
    """A model on a device."""

    def __call__(self, width: int, context: int) -> Forward: ...


@dataclass(frozen=True)
class Roofline:
    """in_loop: another device runs between two forwards of this one.

    >>> from edgespec.simulate.figures import Figure, ModelSize, Device
    >>> def of(value): return Figure(value=value, basis="assumed")
    >>> device = Device(gb_per_s=of(100), tops=of(10), call_ms=of(2), loop_ms=of(5), row_share=of(0.1), watts=of(1))
    >>> model = ModelSize(params_b=8, weight_gb=of(4), kv_kb=100)

    4 GB at 100 GB a second are 40 ms; another row costs a tenth of that, and the call 2 ms. 1,000 rows of context are
    0.1 GB more.

    >>> alone = Roofline(device, model, in_loop=False)
    >>> round(1e3 * alone(1, 0).seconds, 1), round(1e3 * alone(2, 0).seconds, 1), round(1e3 * alone(1, 1000).seconds, 1)
    (42.0, 46.0, 43.0)
    """

    device: Device
    model: ModelSize
    in_loop: bool

    def __call__(self, width: int, context: int) -> Forward:
        device, model = self.device, self.model
        read_gb = model.weight_gb.value + context * model.kv_kb / 1e6
        read_s = read_gb / device.gb_per_s.value
        compute_s = 2 * model.params_b * width / (1e3 * device.tops.value * _PEAK_SHARE)
        rows_s = device.row_share.value * read_s * (width - 1)
        busy_s = max(read_s + rows_s, compute_s)
        call_s = (device.call_ms.value + (device.loop_ms.value if self.in_loop else 0.0)) / 1e3
        return Forward(call_s + busy_s, call_s, read_gb / busy_s)


@dataclass(frozen=True)
class Measured:
    """Linear between the measured widths, and beyond them. Its context costs what a roofline says."""

    times: Forwards
    device: Device
    model: ModelSize

    def __call__(self, width: int, context: int) -> Forward:
        context_gb = context * self.model.kv_kb / 1e6
        seconds = _line(self.times.widths, self.times.ms, width) / 1e3 + context_gb / self.device.gb_per_s.value
        return Forward(seconds, 0.0, (self.model.weight_gb.value + context_gb) / seconds)


@dataclass(frozen=True)
class Constant:
    """The same time at each width, on a bus of its own."""

    seconds: float

    def __call__(self, width: int, context: int) -> Forward:
        return Forward(self.seconds)


def _line(xs: tuple[int, ...], ys: tuple[float, ...], x: int) -> float:
    right = min(max(bisect_right(xs, x), 1), len(xs) - 1)
    left = right - 1
    return ys[left] + (ys[right] - ys[left]) * (x - xs[left]) / (xs[right] - xs[left])
