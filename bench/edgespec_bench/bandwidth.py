"""Is a forward bound by memory or by arithmetic?

A forward reads all weights once, and then each row has work of its own: what a row adds from one width to the next, in
the median. Where it is most of a forward, arithmetic is the limit. Else memory is, if the rest of the time is near that
of a plain read. If it is neither, the engine is: it unpacks weights and hands out work.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, cast

import numpy as np
import psutil

from edgespec.bench.report import show
from edgespec.pipeline import Pipeline
from edgespec_bench.bare import BareLoop, bare_loop

if TYPE_CHECKING:
    from edgespec.backends.engine_model import PaddedModel

WIDTHS = (1, 2, 4, 8, 16)
_CONTEXT = 64
"""rows behind which forwards run: what attention reads there is a hundredth of the weights"""
_BYTES = 256 << 20
"""that each thread reads: more than a CPU's caches hold"""
_NEAR = 0.8
"""share of a plain read that counts as one: its own spread is a fifth on shared machines"""


@dataclass(frozen=True)
class Forward:
    """rows, its milliseconds, the bytes of weights that it reads a second over those of a plain read, the share of its
    time that is work of its rows."""

    rows: int
    ms: float
    of_plain_read: float
    work_of_rows: float

    @property
    def bound(self) -> str:
        """
        >>> [Forward(1, 10, share, work).bound for share, work in ((0.7, 0.2), (0.4, 0.2), (0.2, 0.8))]
        ['memory', 'the engine', 'arithmetic']
        """
        if self.work_of_rows >= 0.5:
            return "arithmetic"
        return "memory" if self.of_plain_read / (1 - self.work_of_rows) >= _NEAR else "the engine"


def bench_bandwidth(pipeline: Pipeline, *, turns: int = 3) -> None:
    """Print the table. Weights count as they lie on the disk: an engine may hold them wider."""
    target = cast("PaddedModel", pipeline.target)
    loop = bare_loop(target, rows=_CONTEXT + max(WIDTHS))
    reads: list[float] = []
    seconds: dict[int, list[float]] = {width: [] for width in WIDTHS}
    with PlainRead() as plain_read:
        for _ in range(turns):
            for width in WIDTHS:
                reads.append(plain_read())
                seconds[width].append(forward_s(loop, width, _CONTEXT))
    read = median(reads)
    found = forwards([median(seconds[width]) for width in WIDTHS], target.weights_bytes / read)
    size = target.weights_bytes / 1e9
    show(
        f"{pipeline.bundle.name} on {target.capabilities.backend}, {size:.2f} GB of weights",
        ["a forward", "weights read"],
        [
            ("plain read of memory", f"{read / 1e9:.1f} GB/s"),
            *(
                (
                    f"{one.rows} rows, {one.ms:.1f} ms",
                    f"{size / one.ms * 1e3:.1f} GB/s, {one.of_plain_read:.2f} of a plain read, "
                    f"{one.work_of_rows:.0%} work of rows: {one.bound}",
                )
                for one in found
            ),
        ],
        {"forwards": {str(one.rows): vars(one) | {"bound": one.bound} for one in found}, "plain_read": read},
    )


def forwards(seconds: Sequence[float], read_s: float) -> list[Forward]:
    """seconds: of each of ``WIDTHS``. read_s: of a plain read of the weights.

    >>> [(one.rows, one.work_of_rows) for one in forwards([0.03, 0.04, 0.06, 0.1, 0.18], 0.02)][:2]
    [(1, 0.333), (2, 0.5)]
    """
    places = list(zip(WIDTHS, seconds, strict=True))
    row_s = max(0.0, median((after - before) / (more - rows) for (rows, before), (more, after) in pairwise(places)))
    return [
        Forward(width, 1e3 * took_s, read_s / took_s, round(min(1.0, width * row_s / took_s), 3))
        for width, took_s in places
    ]


def forward_s(loop: BareLoop, width: int, context: int) -> float:
    """Seconds in the engine. Of two forwards in a row the second, which finds everything prepared."""
    for _ in range(2):
        before = loop.infer_s
        loop.forward([0] * width, context, width)
    return loop.infer_s - before


class PlainRead:
    """Bytes a second that a thread on each core reads, each of an array of its own."""

    def __enter__(self) -> PlainRead:
        self._threads = psutil.cpu_count(logical=False) or 1
        self._pool = ThreadPoolExecutor(self._threads)
        self._arrays = [np.ones(_BYTES // 8, np.int64) for _ in range(self._threads)]
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def __call__(self) -> float:
        began = perf_counter()
        list(self._pool.map(np.max, self._arrays))
        return self._threads * _BYTES / (perf_counter() - began)
