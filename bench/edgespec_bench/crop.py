"""Does rolling back grow with the context?"""

from __future__ import annotations

from statistics import median
from time import perf_counter

from edgespec.bench.report import show
from edgespec.pipeline import Pipeline

CONTEXTS = (256, 512, 1024, 2048, 4096)


def bench_crop(pipeline: Pipeline, *, repeats: int = 200) -> None:
    """Microseconds of one crop of four rejected rows, and of the whole books of a forward, at each context length."""
    target = pipeline.target
    text = [(i * 31) % 1000 + 100 for i in range(max(CONTEXTS))]
    rows, figures = [], {}
    for context in (c for c in CONTEXTS if c <= target.cache.capacity - 8):
        target.prefill(text[:context])
        crops = []
        for _ in range(repeats):
            target.cache.append([1, 2, 3, 4])  # type: ignore[attr-defined]
            began = perf_counter()
            target.cache.crop(context)
            crops.append(1e6 * (perf_counter() - began))
        forward = []
        for _ in range(9):
            began = perf_counter()
            target.forward([1, 2, 3, 4])
            target.cache.crop(context)
            forward.append(1e3 * (perf_counter() - began))
        figures[str(context)] = {"crop_us": median(crops), "forward_and_crop_ms": median(forward)}
        rows.append((context, median(crops), median(forward)))
    show("crop", ["context", "crop, µs", "forward of 4 + crop, ms"], rows, {"contexts": figures})
