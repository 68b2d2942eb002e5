"""Finds the widths that run the same kernels. Exact numerics needs them for each model on each machine.

Engines pick kernels by the number of rows of a matrix product. Among some widths, the logits of a row are bit-identical
whatever other rows are in the forward. At other widths they differ in the last digits, which is enough to flip a near
tie. So the widths are tested.

Measured on OpenVINO with AVX2: SmolLM2 agrees from 2 to 80 rows, int8 layers with 3,072 inputs from 5 rows. With VNNI
SmolLM2 agrees from 2 to 1,000. ONNX Runtime multiplies 4-bit weights two rows at a time, and an odd row with another
kernel. There even widths agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgespec.backends.widths import WIDEST_DRAFT, few_widths, round_up
from edgespec.errors import BackendError
from edgespec.protocols import Model

if TYPE_CHECKING:
    from edgespec.types import Logits

_STEPS = (1, 2, 4)
"""between widths that may agree: all, or each second or fourth. Kernels take rows in blocks of such sizes."""
_WIDTHS = tuple(sorted({*range(1, WIDEST_DRAFT + 4), *few_widths(1, 256)}))
"""all widths that forwards run at"""
_WIDEST = (256, 64, 32, 16)
"""prompts are read in chunks of this many rows. 256 are as fast as more."""
_LARGEST_PAD = 16
"""rows"""
_PAST = 70
"""rows before the windows: more than two KV blocks, and not a whole number of them"""
_WINDOWS = {4: 12, WIDEST_DRAFT + 3: 2, 256: 1}
"""up to that width so many windows are compared: kernels that differ still agree on many a row"""
_NARROW, _AGAINST = range(1, 9), 16
"""widths of which a guess is made, and the width they are compared with"""
_FIRST = (*(width for width in _WIDTHS if width <= WIDEST_DRAFT + 3), 32, 64, 128)
"""widths tried with nothing before them: attention may run another kernel there, and one window shows it"""
ROWS_NEEDED = _PAST + max(_WIDEST)


@dataclass(frozen=True, slots=True)
class ExactWidths:
    """Forwards of ``least`` to ``most`` rows, each a multiple of ``step``, are one function of each row."""

    least: int
    most: int
    step: int = 1

    def __post_init__(self) -> None:
        inside = 1 <= self.least <= min(_LARGEST_PAD, self.most // 2) and self.most in _WIDEST
        if not (inside and self.step in _STEPS and self.least % self.step == 0):
            raise ValueError("not widths that were looked for")


def find_exact_widths(model: Model) -> ExactWidths:
    """Feed one text in consecutive windows of many widths, unpadded. Compare logits bit by bit with those of the
    widest. Of the steps, choose the one with the narrowest least width. Of equal steps, choose the finest.

    The model must run unpadded (min_width 1). Leaves its cache empty. Raises BackendError if no widths agree.
    """
    for most in (most for most in _WIDEST if most <= model.capabilities.max_width):
        differs = _differing(model, _PAST, most, _WIDTHS) | _differing(model, 0, most, _FIRST)
        model.cache.reset()
        found = [(_least(most, step, differs), step) for step in _STEPS]
        least, step = min(found)
        if least <= min(_LARGEST_PAD, most // 2):
            return ExactWidths(least, most, step)
    raise BackendError(
        "exact numerics do not hold for this model on this machine: every width runs kernels of its own",
        hint="use --numerics fast, and please report the output of: edgespec bench exactness --numerics fast",
    )


def guess_exact_widths(model: Model) -> ExactWidths | None:
    """What ``find_exact_widths`` will find, in a hundredth of its time: one window of each narrow width. None if none
    agree. Good enough to time a model, not to promise anything."""
    differs = _differing(model, 0, _AGAINST, _NARROW)
    model.cache.reset()
    least, step = min((_least(_AGAINST, step, differs), step) for step in _STEPS)
    most = max(most for most in _WIDEST if most <= model.capabilities.max_width)
    return ExactWidths(least, most, step) if least in _NARROW else None


def _least(most: int, step: int, differs: set[int]) -> int:
    """The narrowest multiple of ``step`` such that it and all wider multiples agree.

    >>> _least(16, 1, {1, 3, 5}), _least(16, 2, {1, 3, 5}), _least(16, 1, set())
    (6, 2, 1)
    """
    return round_up(1 + max((width for width in differs if width < most and width % step == 0), default=0), step)


def _differing(model: Model, past: int, most: int, widths: Sequence[int]) -> set[int]:
    """The widths whose logits differ from those of ``most``, after ``past`` rows read in chunks of ``most``."""
    text = [(31 * i + i * i) % 200 + 10 for i in range(past + most)]
    model.cache.reset()
    for end in (*range(most, past, most), past):
        model.prefill(text[:end])
    expected = model.forward(text[past:]).logits.copy()
    return {width for width in widths if width < most and not _agrees(model, past, text[past:], width, expected)}


def _agrees(model: Model, past: int, text: list[int], width: int, expected: Logits) -> bool:
    """Whether windows of this width give the same logits, bit by bit. Stops at the first difference."""
    model.cache.crop(past)
    windows = next(count for widest, count in _WINDOWS.items() if width <= widest) if past else 1
    starts = range(0, len(text) - width + 1, width)[:windows]
    return all(
        np.array_equal(model.forward(text[start : start + width]).logits, expected[start : start + width])
        for start in starts
    )
