"""Which forwards are the same function on this machine? One text in windows of many widths, logits compared bit by
bit.

Run it on a machine, model or engine version nobody has tried: exact numerics pads narrow forwards and cuts wide
ones so that every line must be zero; with ``--numerics fast`` it shows what the engine does by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgespec.bench.report import show
from edgespec.machine.progress_line import ProgressLine
from edgespec.pipeline import Pipeline

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 24, 31, 32, 33, 48, 64)
WITH_REJECTED = (1, 2, 4, 8)
CHUNKS = (1, 2, 16, 17, 63, 64, 300)
PROMPT_TOKENS, SCORED = 300, 64


def bench_exactness(pipeline: Pipeline) -> None:
    """Largest difference of any logit to the run in windows of 8: by width, by prefill chunk, after rejected junk."""
    target = pipeline.target
    least, widest = target.capabilities.min_width, min(target.capabilities.max_width, 64)
    text = pipeline.tokenizer.encode(_TEXT, raw=True)
    while len(text) < PROMPT_TOKENS + SCORED:
        text += text
    text = text[: PROMPT_TOKENS + SCORED]
    widths = [w for w in WIDTHS if w <= widest]
    say, ran, runs = ProgressLine(True), 0, 1 + len(widths) + len(WITH_REJECTED) + len(CHUNKS)
    what = f"a text of {len(text)} tokens, fed in {runs} ways"
    say(what, 0.0)

    def run(width: int, first: int = PROMPT_TOKENS, junk: int = 0) -> NDArray[np.float32]:
        nonlocal ran
        target.cache.reset()
        for begin in range(0, PROMPT_TOKENS, first):
            target.prefill(text[: min(begin + first, PROMPT_TOKENS)])
        rows = []
        for begin in range(PROMPT_TOKENS, len(text), width):
            window = text[begin : min(begin + width, len(text))]
            step = target.forward([*window, *([7, 1999, 23, 5][:junk])])
            rows.append(step.logits[: len(window)].copy())
            target.cache.keep(range(len(window)))
        ran += 1
        say(what, ran / runs)
        return np.concatenate(rows)

    reference = run(8)

    def difference(logits: NDArray[np.float32]) -> tuple[float, float]:
        same = float((logits.argmax(1) == reference.argmax(1)).mean())
        return float(np.abs(logits - reference).max()), same

    rows: list[tuple[str, float, float]] = []
    figures: dict[str, float] = {}
    for kind, values in {
        "width": [(f"{w}", run(w)) for w in WIDTHS if w <= widest],
        "width + 3 rejected": [(f"{w}", run(w, junk=3)) for w in WITH_REJECTED],
        "prefill chunk": [(f"{c}", run(8, first=c)) for c in CHUNKS],
    }.items():
        for label, logits in values:
            largest, same = difference(logits)
            rows.append((f"{kind} {label}", largest, same))
            figures[f"{kind} {label}"] = largest
    exact = all(value == 0.0 for value in figures.values())
    show(
        "exactness",
        ["how the text was fed", "largest logit difference", "argmax agreement"],
        rows,
        {
            "numerics": target.capabilities.numerics,
            "compute_precision": target.capabilities.compute_precision,
            "widths": [least, widest],
            "all_equal": exact,
            "largest_difference": figures,
        },
    )


_TEXT = """The quick brown fox jumps over the lazy dog. In 1969, two people walked on the Moon, and six hundred million
watched. def merge(a, b): return sorted(a + b)  # not the fastest way. Water boils at 100 degrees at sea level; on a
mountain it boils sooner. "Why," she asked, "does nobody write letters any more?" He had no answer, so he wrote one."""
