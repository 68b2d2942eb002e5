"""Is a forward bound by memory or by arithmetic? Its weights are read once, and a plain read of memory takes as long at
least."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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
_MEMORY = 0.8
"""share of a plain read from which on memory is what a forward waits for: engines at one row reach 0.8 to 1"""


def bench_bandwidth(pipeline: Pipeline, *, turns: int = 3) -> None:
    """Print the table. Weights count as they lie on the disk: an engine may hold them wider."""
    target = cast("PaddedModel", pipeline.target)
    loop = bare_loop(target, rows=_CONTEXT + max(WIDTHS))
    read = plain_read()
    seconds: dict[int, list[float]] = {width: [] for width in WIDTHS}
    for _ in range(turns):
        read = max(read, plain_read())
        for width in WIDTHS:
            seconds[width].append(forward_s(loop, width, _CONTEXT))
    rows, figures = [], {}
    for width in WIDTHS:
        took_s = median(seconds[width])
        share = target.weights_bytes / took_s / read
        bound = "memory" if share >= _MEMORY else "arithmetic"
        figures[str(width)] = {"ms": 1e3 * took_s, "of_plain_read": share}
        speed = f"{target.weights_bytes / took_s / 1e9:.1f} GB/s, {share:.2f} of a plain read: {bound}"
        rows.append((f"{width} rows, {1e3 * took_s:.1f} ms", speed))
    title = f"{pipeline.bundle.name} on {target.capabilities.backend}, {target.weights_bytes / 1e9:.2f} GB of weights"
    show(
        title,
        ["a forward", "weights read"],
        [("plain read of memory", f"{read / 1e9:.1f} GB/s"), *rows],
        {"forwards": figures},
    )


def forward_s(loop: BareLoop, width: int, context: int) -> float:
    """Seconds in the engine. Of two forwards in a row the second, which finds everything prepared."""
    for _ in range(2):
        before = loop.infer_s
        loop.forward([0] * width, context, width)
    return loop.infer_s - before


def plain_read() -> float:
    """Bytes a second that a thread on each core reads, each of an array of its own."""
    threads = psutil.cpu_count(logical=False) or 1
    arrays = [np.ones(_BYTES // 8, np.int64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.max, arrays))
        began = perf_counter()
        list(pool.map(np.max, arrays))
        return threads * _BYTES / (perf_counter() - began)
