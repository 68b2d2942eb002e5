"""The few widths that prompts are read at.

An engine prepares itself for every width it meets, and keeps what it prepared: OpenVINO about 2 MB of kernels for each
in SmolLM2-135M, and the first forward of a width takes half as long again. Prompts come in all lengths. So a forward
that reads a prompt is padded to one of these widths, and so is any that is wider than a draft makes it.
"""

from __future__ import annotations

from bisect import bisect_left

WIDEST_DRAFT = 17
"""rows of the widest forward that runs as wide as it is: 16 drafted tokens and the one before them"""
_FEW = (
    *(1, 2, 3, 4, 6, 8, 12, 16),
    *(20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256),
    *(320, 384, 448, 512),
)
"""four for each doubling, as long as they are not more than 64 rows apart"""


def few_widths(least: int, most: int, step: int = 1) -> tuple[int, ...]:
    """Those from ``least`` to ``most``, which is one of them; multiples of ``step`` only.

    >>> few_widths(5, 33), few_widths(2, 16, 2)
    ((5, 6, 8, 12, 16, 20, 24, 28, 32, 33), (2, 4, 6, 8, 12, 16))
    """
    between = (width for width in _FEW if least < width < most and width % step == 0)
    return (least, *between, most) if least < most else (most,)


def width_of(n: int, reading: bool, few: tuple[int, ...], step: int = 1) -> int:
    """How wide a forward of n rows runs. few: widths that prompts are read at, or () for all. step: all widths that the
    model may run at are multiples of it.

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
    """To a multiple of ``step``."""
    return -(-n // step) * step
