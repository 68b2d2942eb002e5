"""Which widths run the same kernels? Exact numerics needs an answer for each model on each machine.

The CPU plugin picks kernels by the number of rows of a matrix product. Within a range of widths a row's logits are
the same bits whatever its company; outside it they differ in the last digits, which is enough to flip a near-tie.
Measured: with AVX2 SmolLM2 agrees from 2 to 80 rows, int8 layers with 3,072 inputs only from 5 rows on; with VNNI
SmolLM2 agrees from 2 to 1,000. So it is tried, once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgespec.backends.widths import WIDEST_DRAFT, few_widths
from edgespec.errors import BackendError
from edgespec.protocols import Model

_WIDTHS = tuple(sorted({5, 7, 9, 15, WIDEST_DRAFT, *few_widths(1, 256)}))
"""what forwards run at, and some that others stand for"""
_WIDEST = (256, 64, 32, 16)
"""prompts are read in chunks of this many rows: 256 are as fast as more"""
_LARGEST_PAD = 16
_PAST = 70  # rows before the windows: more than two KV blocks, not a whole number of them
_WINDOWS, _NARROW, _NARROW_WINDOWS = 2, 4, 12
"""windows compared of each width, and 12 of widths up to 4 rows: kernels that differ still agree on many a row"""
ROWS_NEEDED = _PAST + max(_WIDEST)


@dataclass(frozen=True, slots=True)
class ExactWidths:
    """Forwards of ``least`` to ``most`` rows are one function of each row."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if not (1 <= self.least <= min(_LARGEST_PAD, self.most // 2) and self.most in _WIDEST):
            raise ValueError("not a range that was looked for")


def find_exact_widths(model: Model) -> ExactWidths:
    """Feed one text in windows of many widths, unpadded, one behind the other, and compare logits bit by bit with the
    widest.

    The model must run unpadded (min_width 1). Leaves its cache empty. Raises BackendError if there is no useful range.
    """
    for most in (most for most in _WIDEST if most <= model.capabilities.max_width):
        least = max(_least(model, past, most) for past in (_PAST, 0))
        model.cache.reset()
        if least <= min(_LARGEST_PAD, most // 2):
            return ExactWidths(least, most)
    raise BackendError(
        "exact numerics do not hold for this model on this machine: every width runs kernels of its own",
        hint="use --numerics fast, and please report the output of: edgespec bench exactness --numerics fast",
    )


def _least(model: Model, past: int, most: int) -> int:
    """The narrowest width from which on all up to ``most`` agree, behind ``past`` rows read in chunks of ``most``."""
    text = [(31 * i + i * i) % 200 + 10 for i in range(past + most)]
    model.cache.reset()
    for end in (*range(most, past, most), past):
        model.prefill(text[:end])
    expected = model.forward(text[past:]).logits.copy()
    least = most
    for width in reversed([w for w in _WIDTHS if w < most]):
        model.cache.crop(past)
        for start in range(0, most - width + 1, width)[: _NARROW_WINDOWS if width <= _NARROW else _WINDOWS]:
            rows = slice(start, start + width)
            if not np.array_equal(model.forward(text[past:][rows]).logits, expected[rows]):
                return least
        least = width
    return least
