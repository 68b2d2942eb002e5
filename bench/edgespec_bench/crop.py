"""Does rolling back grow with the context, and does a step cost more behind rows that were rejected?"""

from __future__ import annotations

from statistics import median
from time import perf_counter

from edgespec.bench.report import show
from edgespec.pipeline import Pipeline
from edgespec.protocols import Model

CONTEXTS = (256, 512, 1024, 2048, 4096)
TEXT_IDS = range(100, 1100)
"""of the text, which says nothing"""
_STEPS = 15
"""of one token, to take the median"""
_ROOM = 8 + 2 * _STEPS
"""rows behind a context that are written here"""


def bench_crop(pipeline: Pipeline, *, repeats: int = 200) -> None:
    """Microseconds of one crop of four rejected rows; of the whole books of a forward; and of a plain step, alone and
    after each of its forerunners had a draft that was rejected. At each context length."""
    target = pipeline.target
    text = [TEXT_IDS[31 * place % len(TEXT_IDS)] for place in range(max(CONTEXTS))]
    rows, figures = [], {}
    for context in (c for c in CONTEXTS if c <= target.cache.capacity - _ROOM):
        target.prefill(text[:context])
        plain_ms = _steps_ms(target, rejected=False)
        target.cache.crop(context)
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
        behind_ms = _steps_ms(target, rejected=True)
        figures[str(context)] = {
            "crop_us": median(crops),
            "forward_and_crop_ms": median(forward),
            "plain_step_ms": plain_ms,
            "step_behind_rejected_ms": behind_ms,
        }
        rows.append((context, *figures[str(context)].values(), behind_ms / plain_ms))
    columns = ["crop, µs", "forward of 4 + crop, ms", "plain step, ms", "behind rejected rows, ms", "over plain"]
    show("crop", ["context", *columns], rows, {"contexts": figures})


def _steps_ms(target: Model, *, rejected: bool) -> float:
    """Median of a step of one token. rejected: a draft of three goes before each of them."""
    found = []
    for _ in range(_STEPS):
        length = target.cache.length
        if rejected:
            target.forward([1, 2, 3, 4])
            target.cache.crop(length)
        began = perf_counter()
        target.forward([1])
        found.append(1e3 * (perf_counter() - began))
    return median(found)
