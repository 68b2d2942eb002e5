"""Blocks of ggml's quantized types, taken apart: whole numbers, and what they are multiplied with.

``weight = step * code - minimum``, a step and perhaps a minimum for each 16 or 32 codes. Only types are here whose
codes fit into eight bits as they are; of the others ``gguf`` gives the weights.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_FOUR_BITS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""the sixteen weights of IQ4_NL and IQ4_XS, in steps"""


@dataclass(frozen=True)
class Parts:
    """Of n blocks."""

    codes: NDArray[Any]
    """(n, size of a block), uint8 or int8"""
    steps: Floats
    """(n, groups of a block)"""
    minima: Floats | None = None
    """(n, groups of a block)"""


def _q4_0(blocks: Bytes) -> Parts:
    return Parts(_nibbles(blocks[:, 2:], 16).view("int8") - 8, _half(blocks, 0))


def _q4_1(blocks: Bytes) -> Parts:
    return Parts(_nibbles(blocks[:, 4:], 16), _half(blocks, 0), -_half(blocks, 2))


def _q5_0(blocks: Bytes) -> Parts:
    codes = _nibbles(blocks[:, 6:], 16) | _bits(blocks[:, 2:6]) << 4
    return Parts(codes.view("int8") - 16, _half(blocks, 0))


def _q5_1(blocks: Bytes) -> Parts:
    codes = _nibbles(blocks[:, 8:], 16) | _bits(blocks[:, 4:8]) << 4
    return Parts(codes, _half(blocks, 0), -_half(blocks, 2))


def _q8_0(blocks: Bytes) -> Parts:
    return Parts(blocks[:, 2:].view("int8"), _half(blocks, 0))


def _iq4_nl(blocks: Bytes) -> Parts:
    return Parts(_of_four_bits(_nibbles(blocks[:, 2:], 16)), _half(blocks, 0))


def _q2_k(blocks: Bytes) -> Parts:
    codes, scales = _planes(blocks[:, 16:80], (0, 2, 4, 6)) & 3, blocks[:, :16]
    return Parts(codes, _half(blocks, 80) * (scales & 15), _half(blocks, 82) * (scales >> 4))


def _q3_k(blocks: Bytes) -> Parts:
    high = _planes(blocks[:, :32], range(8)) & 1 ^ 1
    codes = (_planes(blocks[:, 32:96], (0, 2, 4, 6)) & 3).view("int8") - (high << 2).view("int8")
    low = _planes(blocks[:, 96:104], (0, 4), 8) & 15
    scales = low | (_planes(blocks[:, 104:108], (0, 2, 4, 6), 4) & 3) << 4
    return Parts(codes, _half(blocks, 108) * (scales.view("int8") - 32))


def _q4_k(blocks: Bytes) -> Parts:
    return Parts(_nibbles(blocks[:, 16:], 32), *_scales_and_minima(blocks))


def _q5_k(blocks: Bytes) -> Parts:
    codes = _nibbles(blocks[:, 48:], 32) | (_planes(blocks[:, 16:48], range(8)) & 1) << 4
    return Parts(codes, *_scales_and_minima(blocks))


def _iq4_xs(blocks: Bytes) -> Parts:
    high = blocks[:, 2:4].copy().view("<u2") >> _row(range(0, 16, 2), "u2")
    low = blocks[:, 4:8, None] >> _row((0, 4)) & 15
    scales = low.reshape(len(blocks), 8) | ((high & 3) << 4).astype("uint8")
    return Parts(_of_four_bits(_nibbles(blocks[:, 8:], 16)), _half(blocks, 0) * (scales.view("int8") - 32))


TAKE_APART: dict[str, Callable[[Bytes], Parts]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}


def _half(blocks: Bytes, at: int) -> Floats:
    """(n, 1): the float16 at a byte of each block."""
    numbers: Floats = blocks[:, at : at + 2].copy().view("<f2").astype("float32")
    return numbers


def _row(values: Any, kind: str = "uint8") -> NDArray[Any]:
    return np.array(values, kind)


def _nibbles(data: Bytes, size: int) -> Bytes:
    """Low halves of ``size`` bytes, then their high halves, and so on."""
    halves: Bytes = _planes(data, (0, 4), size) & np.uint8(15)
    return halves


def _planes(data: Bytes, shifts: Any, size: int = 32) -> Bytes:
    """``size`` bytes shifted by the first number, then by the second, and so on; then the next bytes."""
    shifted: Bytes = data.reshape(len(data), -1, 1, size) >> _row(shifts)[:, None]
    return shifted.reshape(len(data), -1)


def _bits(data: Bytes) -> Bytes:
    return np.unpackbits(np.ascontiguousarray(data), axis=1, bitorder="little")


def _of_four_bits(codes: Bytes) -> NDArray[Any]:
    return _row(_FOUR_BITS, "int8")[codes]


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """Of Q4_K and Q5_K: eight of each in six bits, the last four of each in two places."""
    scale, minimum, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([scale & 63, (rest & 15) | (scale >> 2 & 48)], 1)
    minima = np.concatenate([minimum & 63, (rest >> 4) | (minimum >> 2 & 48)], 1)
    return _half(blocks, 0) * scales, _half(blocks, 2) * minima
