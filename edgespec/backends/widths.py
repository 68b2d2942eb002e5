"""The few widths at which prompts are read.

An engine prepares itself for every width that it runs, and keeps what it prepared. OpenVINO keeps about 2 MB of kernels
for each width of SmolLM2-135M, and the first forward of a width takes half as long again. Prompts come in all lengths.
So a forward that reads a prompt is padded to one of these widths. So is any forward that is wider than a draft makes
it.
"""

from __future__ import annotations

from bisect import bisect_left

WIDEST_DRAFT = 17
"""rows of the widest forward that is not padded: 16 drafted tokens and the one before them"""
_FEW = (
    *(1, 2, 3, 4, 6, 8, 12, 16),
    *(20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256),
    *(320, 384, 448, 512),
)
"""four for each doubling, as long as they are at most 64 rows apart"""


def few_widths(least: int, most: int, step: int = 1) -> tuple[int, ...]:
    """The few widths between ``least`` and ``most``, and these two. Only multiples of ``step``.

    >>> few_widths(5, 33), few_widths(2, 16, 2)
    ((5, 6, 8, 12, 16, 20, 24, 28, 32, 33), (2, 4, 6, 8, 12, 16))
    """
    between = (width for width in _FEW if least < width < most and width % step == 0)
    return (least, *between, most) if least < most else (most,)


def width_of(n: int, reading: bool, few: tuple[int, ...], step: int = 1) -> int:
    """How wide a forward of n rows runs. few: the widths at which prompts are read, or () if all are. step: every width
    of the model is a multiple of it.

    >>> few = few_widths(1, 256)
    >>> width_of(41, True, few), width_of(5, True, few), width_of(5, False, few), width_of(41, False, few)
    (48, 6, 5, 48)
    >>> width_of(5, False, few_widths(2, 256, 2), 2)
    6
    """
    if not few or n > few[-1]:
        return n
    if not reading and n <= WIDEST_DRAFT:
        return round_up(n, step)
    return few[bisect_left(few, n)]


def round_up(n: int, step: int) -> int:
    """The next multiple of ``step``."""
    return -(-n // step) * step
