"""Finds the widths that run the same kernels. Exact numerics needs them for each model on each machine.

Engines pick kernels by the number of rows of a matrix product. Among some widths, the logits of a row are bit-identical
whatever other rows are in the forward. At other widths they differ in the last digits, which is enough to flip a near
tie. So the widths are tested.

Measured on OpenVINO with AVX2: SmolLM2 agrees from 2 to 80 rows, int8 layers with 3,072 inputs from 5 rows. With VNNI
SmolLM2 agrees from 2 to 1,000. ONNX Runtime multiplies 4-bit weights two rows at a time, and an odd row with another
kernel. There even widths agree.
"""

from __future__ import annotations

from collections.abc import Callable
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
_WIDEST = (256, 128, 64, 32, 16)
"""prompts are read in chunks of this many rows, if the model takes so many. 256 are as fast as more."""
_LARGEST_PAD = 16
"""rows"""
_FIRST_TRIED = round_up(WIDEST_DRAFT, max(_STEPS))
"""A multiple of every step, above the largest pad: if it differs, no step is left, and nothing else is tried."""
_WIDTHS = (
    _FIRST_TRIED,
    *(width for width in few_widths(1, max(_WIDEST)) if width > _FIRST_TRIED),
    *range(_FIRST_TRIED - 1, 0, -1),
)
"""all widths that forwards run at, in the order of trial: of the narrow ones a wider one may make others needless"""
_PAST = 80
"""rows before the windows: more than two KV blocks, and not a whole number of them"""
_WINDOWS = {1: 16, 2: 12, 4: 6, 11: 2, max(_WIDEST): 1}
"""up to that width so many windows are compared: kernels that differ still agree on many a row"""
_NARROW, _AGAINST = range(1, 9), 16
"""widths of which a guess is made, and the width they are compared with"""
_FIRST = tuple(width for width in _WIDTHS if width <= _FIRST_TRIED or width in (32, 64))
"""widths tried with nothing before them: attention may run another kernel there, and one window shows it"""
ROWS_NEEDED = _PAST + max(_WIDEST)

Tried = dict[str, bool]
"""Whether a trial found the same logits, by the name of the trial."""


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


def find_exact_widths(
    model: Model, tried: Tried | None = None, keep: Callable[[Tried, float], None] = lambda tried, share: None
) -> ExactWidths:
    """Feed one text in consecutive windows of many widths, unpadded. Compare logits bit by bit with those of the
    widest. Of the steps, choose the one with the narrowest least width. Of equal steps, choose the finest.

    The model must run unpadded (min_width 1). Leaves its cache empty. Raises BackendError if no widths agree.
    tried: what an interrupted search has found for this model. keep: called after each trial, with all that were made
    and the share of the work of this search that is done.
    """
    tried = {} if tried is None else tried
    for most in (most for most in _WIDEST if most <= model.capabilities.max_width):
        differs = _differing_anywhere(model, most, tried, keep)
        model.cache.reset()
        least, step = min((_least(most, step, differs), step) for step in _STEPS)
        if least <= _largest_least(most):
            return ExactWidths(least, most, step)
    raise BackendError(
        "exact numerics do not hold for this model on this machine: every width runs kernels of its own",
        hint="use --numerics fast, and please report the output of: edgespec bench exactness --numerics fast",
    )


def guess_exact_widths(model: Model) -> ExactWidths | None:
    """What ``find_exact_widths`` will find, in a hundredth of its time: one window of each narrow width. None if none
    agree. Good enough to time a model, not to promise anything."""
    text = _text(model, _AGAINST)
    model.cache.reset()
    expected = model.forward(text).logits.copy()
    differs = {width for width in _NARROW if not _agrees(model, 0, text, width, expected)}
    model.cache.reset()
    least, step = min((_least(_AGAINST, step, differs), step) for step in _STEPS)
    most = max(most for most in _WIDEST if most <= model.capabilities.max_width)
    return ExactWidths(least, most, step) if least in _NARROW else None


def _text(model: Model, tokens: int) -> list[int]:
    """To be read. A model of letters has fewer ids than others."""
    return [((31 * i + i * i) % 200 + 10) % model.vocab_size for i in range(tokens)]


def _least(most: int, step: int, differs: set[int]) -> int:
    """The narrowest multiple of ``step`` such that it and all wider multiples agree.

    >>> _least(16, 1, {1, 3, 5}), _least(16, 2, {1, 3, 5}), _least(16, 1, set())
    (6, 2, 1)
    """
    return round_up(1 + max((width for width in differs if width < most and width % step == 0), default=0), step)


def _largest_least(most: int) -> int:
    return min(_LARGEST_PAD, most // 2)


def _matters(width: int, most: int, differs: set[int]) -> bool:
    """Whether a trial of this width can change the result, for all that is known.

    >>> _matters(3, 256, {19}), _matters(2, 256, {19}), _matters(2, 256, {18, 19}), _matters(24, 256, {20})
    (False, True, False, False)
    """
    least = {step: _least(most, step, differs) for step in _STEPS}
    return any(least[step] <= min(width, _largest_least(most)) for step in _STEPS if width % step == 0)


def _differing_anywhere(model: Model, most: int, tried: Tried, keep: Callable[[Tried, float], None]) -> set[int]:
    """The widths that differ from ``most`` behind other rows or with nothing before them, of those that matter."""
    text = _text(model, _PAST + most)
    trials = [(past, width) for past, widths in ((_PAST, _WIDTHS), (0, _FIRST)) for width in widths if width < most]
    trials.insert(0, (_PAST, most))  # with a prompt's second chunk, the reference itself is tried
    work = [0 if f"{most} {past} {width}" in tried else width * _windows(past, width) for past, width in trials]
    work[0] += most + _PAST  # what all are held against is read before the first
    differs: set[int] = set()
    reference: _Reference | None = None
    for number, (past, width) in enumerate(trials):
        name = f"{most} {past} {width}"
        if differs and not _matters(width, most, differs):
            continue
        if name not in tried:
            reference = reference or _Reference(model, text, most)
            tried[name] = reference.agrees(past, width)
            keep(tried, sum(work[: number + 1]) / sum(work))
        if not tried[name]:
            differs |= set(range(1, most)) if width == most else {width}
    return differs


class _Reference:
    """The logits of two forwards of ``most`` rows: with nothing before them, and behind ``_PAST`` rows. Where the two
    overlap, they have to agree too."""

    def __init__(self, model: Model, text: list[int], most: int) -> None:
        self._model, self._text, self._most = model, text, most
        model.cache.reset()
        first = model.forward(text[:most]).logits.copy()
        for end in (*range(2 * most, _PAST, most), _PAST):
            model.prefill(text[:end])
        self._expected = {0: first, _PAST: model.forward(text[_PAST:]).logits.copy()}
        overlap = max(0, most - _PAST)
        self._is_one = np.array_equal(first[most - overlap :], self._expected[_PAST][:overlap])
        self._expected[0] = first[: max(_FIRST)].copy()  # the rest is large

    def agrees(self, past: int, width: int) -> bool:
        if width == self._most:
            return self._is_one
        return _agrees(self._model, past, self._text[past : past + self._most], width, self._expected[past])


def _agrees(model: Model, past: int, text: list[int], width: int, expected: Logits) -> bool:
    """Whether windows of this width give the same logits, bit by bit. Stops at the first difference."""
    model.cache.crop(past)
    starts = range(0, min(len(text), len(expected)) - width + 1, width)[: _windows(past, width)]
    return all(
        np.array_equal(model.forward(text[start : start + width]).logits, expected[start : start + width])
        for start in starts
    )


def _windows(past: int, width: int) -> int:
    """How many windows of a width are compared."""
    return next(count for widest, count in _WINDOWS.items() if width <= widest) if past else 1
