"""The form that the weights of each ggml type get: whole numbers that integer kernels multiply.

``weight = code * step + offset``, a step and perhaps an offset for each block of a row. In a product, offsets multiply
the sums over each block of what is multiplied. They are further columns of the same matrix, in codes too: an offset is
a number of a few digits, and each digit is a code. The lower ones multiply the same sums, made as much smaller. So one
integer product does it all. An engine reads offsets in 12 bits then, not in 32, and calls no second kernel.

Codes lie around zero, because activations are in 8 bits there: what that rounds is multiplied with the codes.

A type without such a form is coded again in 8 bits, which costs a fraction of what the type itself had rounded.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgespec.gguf.blocks import TAKE_APART
from edgespec.gguf.tensors import Stored

Weights = Literal["int8", "int4", "faithful", "given"]
"""int8: every matrix in 8 bits again, with a step and a zero point a row, as NNCF's INT8_ASYM has it. int4: in 4 bits
over 128, embeddings and output head in 8 bits over 128. given: every matrix is an input of the graph, in float32 (see
``gguf.reference``)"""
Offsets = Literal["none", "digits", "apart"]
"""apart: as floats, a second product; their rows can be looked up"""

GIVEN = "given"
FLOATING = {"F32": 32, "F16": 16, "BF16": 16}
RECODED = (
    "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "MXFP4",
)  # fmt: skip
QUANTIZATIONS = (*FLOATING, *TAKE_APART, *RECODED)

TABLES = ("token_embd.weight", "output.weight")
"""rows are looked up in the first; the second is the output head"""

_FOUR_BITS = ("Q4_0", "Q4_1", "Q4_K", "Q2_K", "Q3_K")
_CENTRES = {"Q4_1": 8, "Q4_K": 8, "Q5_1": 16, "Q5_K": 16, "Q2_K": 2}
"""of types with minima, whose codes begin at zero"""
_BLOCKS = {"Q2_K": 16, "Q3_K": 16, "Q6_K": 128}
"""Numbers that share a step, 32 but for these. Q6_K has blocks of 16, which cost a byte for four numbers and time in
every kernel; in 8 bits a step for 128 numbers is fine enough: see docs/engines.md."""
_BLOCK = 32
_RECODED_BLOCK = 128
_DIGITS = {4: 3, 8: 2}
"""of an offset, by the bits of a code. Two of 4 bits leave 0.6 % of the weights' size, as much as Q6_K loses"""
_SHRUNK = (1.0, 0.92, 0.85)
"""Parts of a block's range that four bits may cover; the best is taken. The ends are cut off then, and steps finer."""


@dataclass(frozen=True)
class Form:
    """Matrices of one form, and as many columns, can be stacked.

    bits: of a code; 16 and 32 are numbers as they are. block: numbers that share a step. zeros: the codes of a row are
    counted from its zero point.
    """

    bits: int
    block: int = 0
    offsets: Offsets = "none"
    zeros: bool = False
    kind: str = ""
    """of numbers as they are: a ggml type"""

    def __str__(self) -> str:
        if self.kind:
            return "as they are"
        over = "a row" if self.zeros else str(self.block)
        return f"as {self.bits} bits over {over}" + _IN_WORDS[self.offsets]

    @property
    def radix(self) -> int:
        return 1 << self.bits

    @property
    def digits(self) -> int:
        """Columns that the offset of a block takes."""
        return _DIGITS[self.bits] if self.offsets == "digits" else 0

    def further(self, columns: int) -> int:
        """Columns behind those of a matrix: digits of offsets, and zeros to a whole block."""
        return -(-self.digits * columns // self.block**2) * self.block if self.digits else 0

    def nbytes(self, rows: int, columns: int) -> int:
        """Steps and offsets are float32: a float16 has too few digits for some products of two."""
        if self.kind:
            return rows * columns * self.bits // 8
        wide = columns + self.further(columns)
        apart = columns // self.block if self.offsets == "apart" else 0
        return rows * (wide * self.bits // 8 + 4 * (wide // self.block + apart))


_IN_WORDS: dict[Offsets, str] = {"none": "", "digits": " with minima in digits", "apart": " in two products"}


def form_of(kind: str, columns: int, weights: Weights, *, table: bool = False) -> Form:
    """table: of ``TABLES``."""
    if weights == "given":
        return Form(32, kind=GIVEN)
    if weights == "int8":
        return Form(8, columns, zeros=True)
    if weights == "int4":
        return Form(8 if table else 4, math.gcd(_RECODED_BLOCK, columns))
    if kind in FLOATING:
        return Form(FLOATING[kind], kind=kind)
    block = math.gcd(_BLOCKS.get(kind, _BLOCK), columns)
    offsets: Offsets = "none" if kind not in _CENTRES else "apart" if table else "digits"
    return Form(4 if kind in _FOUR_BITS else 8, block, offsets)


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix in their form: codes from -8 or -128 on, or from 0 if there are zeros."""

    codes: NDArray[Any]
    """(rows, columns), with further ones for offsets in digits"""
    steps: NDArray[Any]
    """(rows, blocks)"""
    offsets: NDArray[Any] | None = None
    """(rows, blocks)"""
    zeros: NDArray[Any] | None = None
    """(rows, 1)"""

    def values(self) -> NDArray[Any]:
        """``(rows, columns)``, without offsets."""
        codes = self.codes if self.zeros is None else self.codes - self.zeros.astype(np.float32)
        scaled: NDArray[Any] = codes.reshape(*self.steps.shape, -1) * self.steps[..., None]
        return scaled.reshape(codes.shape)


def encoded(matrix: Stored, which: slice, form: Form, losses: Losses) -> Rows:
    """Raises ConversionError: numbers that are not finite."""
    if matrix.kind in TAKE_APART and form == form_of(
        matrix.kind, matrix.shape[1], "faithful", table=form.offsets == "apart"
    ):
        return _taken_apart(matrix, which, form, losses)
    values = matrix.rows(which)
    if form.zeros:
        rows = _by_row(values)
    else:
        rows = _in_four_bits(values, form.block) if form.bits == 4 else _by_block(values, form.block)
    losses.add(matrix.kind, form, values, rows.values())
    return rows


def _taken_apart(matrix: Stored, which: slice, form: Form, losses: Losses) -> Rows:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    data = matrix.bytes(which)
    parts = TAKE_APART[matrix.kind](data.reshape(-1, GGML_QUANT_SIZES[GGMLQuantizationType[matrix.kind]][1]))
    steps = matrix.finite(parts.steps).reshape(len(data), -1)
    codes = parts.codes.reshape(len(data), -1)
    if parts.minima is None:
        return Rows(codes, steps)
    centre = _CENTRES[matrix.kind]
    minima = matrix.finite(parts.minima).reshape(len(data), -1)
    rows = Rows(codes.view(np.int8) - np.int8(centre), steps, centre * steps - minima)
    if form.offsets == "apart" or rows.offsets is None:
        return rows
    digits, kept = _in_digits(rows.offsets, form)
    losses.add_squares(matrix.kind, form, form.block * _squares(rows.offsets - kept), _squares_of_weights(rows))
    return Rows(np.concatenate([rows.codes, digits.codes], 1), np.concatenate([steps, digits.steps], 1))


def _in_digits(offsets: NDArray[Any], form: Form) -> tuple[Rows, NDArray[Any]]:
    """The further columns, the highest digits of all offsets first, and what the offsets are in them.

    A row has one unit. Digits lie around zero, as codes do.

    >>> made, kept = _in_digits(np.float32([[1911, -300]]), Form(4, 32, "digits"))
    >>> made.codes[0, :6].tolist(), made.steps.tolist()  # 7 * 256 + 7 * 16 + 7, -1 * 256 - 3 * 16 + 4
    ([7, -1, 7, -3, 7, 4], [[256.0]])
    """
    half = form.radix // 2
    largest = (half - 1) * sum(form.radix**place for place in range(form.digits))
    unit = np.abs(offsets).max(1, keepdims=True) / np.float32(largest)
    numbers = np.rint(offsets / np.where(unit == 0, np.float32(1), unit)).astype(np.int32)
    kept = numbers * unit
    digits = []
    for _ in range(form.digits - 1):
        digits.append((numbers + half) % form.radix - half)
        numbers = (numbers - digits[-1]) // form.radix
    digits.append(numbers)
    rows, groups = offsets.shape
    codes = np.zeros((rows, form.further(groups * form.block)), np.int8)
    codes[:, : groups * form.digits] = np.concatenate(digits[::-1], 1)
    steps = np.repeat(unit * np.float32(form.radix ** (form.digits - 1)), codes.shape[1] // form.block, 1)
    return Rows(codes, steps), kept


def _by_block(values: NDArray[Any], block: int) -> Rows:
    """To half a step, which is a 254th of the largest number of the block."""
    blocks = values.reshape(-1, block)
    steps = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    codes = np.rint(blocks / np.where(steps == 0, np.float32(1), steps)).astype(np.int8)
    return Rows(codes.reshape(values.shape), steps.reshape(len(values), -1))


def _in_four_bits(values: NDArray[Any], block: int) -> Rows:
    """All sixteen codes: the number farthest from zero is the eighth below it."""
    blocks = values.reshape(-1, block)
    ends = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    found: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []  # of each part: squares of errors, codes, steps
    for part in _SHRUNK:
        steps = ends * np.float32(-part / 8)
        codes = np.clip(np.rint(blocks / np.where(steps == 0, np.float32(1), steps)), -8, 7)
        found.append((((codes * steps - blocks) ** 2).sum(1, keepdims=True), codes.astype(np.int8), steps))
    best = np.argmin(np.concatenate([errors for errors, _, _ in found], 1), 1)[:, None]
    codes, steps = (np.choose(best, [each[at] for each in found]) for at in (1, 2))
    return Rows(codes.reshape(values.shape), steps.reshape(len(values), -1))


def _by_row(values: NDArray[Any]) -> Rows:
    """To half a step: zero is a code, and the step is rounded up so that no code is cut."""
    low, high = values.min(1, keepdims=True, initial=0), values.max(1, keepdims=True, initial=0)
    exact = (high - low) / 255
    step = exact.astype(np.float16)
    step = np.where(step < exact, np.nextafter(step, np.float16(np.inf)), step)
    step = np.maximum(step, np.finfo(np.float16).smallest_subnormal)
    zero = np.rint(-low / step)
    codes = np.clip(np.rint(values / step.astype(np.float32)) + zero, 0, 255).astype(np.uint8)
    return Rows(codes, step, zeros=zero.astype(np.uint8))


class Losses:
    """What was rounded, by ggml type and form (in words)."""

    def __init__(self) -> None:
        self._matrices: Counter[tuple[str, str]] = Counter()
        self._lost: dict[tuple[str, str], float] = defaultdict(float)  # sums of squares
        self._whole: dict[tuple[str, str], float] = defaultdict(float)

    def count(self, kind: str, form: Form) -> None:
        """A matrix of this type gets this form."""
        self._matrices[kind, str(form)] += 1

    def add(self, kind: str, form: Form, values: NDArray[Any], became: NDArray[Any]) -> None:
        """Some rows of it."""
        self.add_squares(kind, form, _squares(values - became), _squares(values))

    def add_squares(self, kind: str, form: Form, lost: float, whole: float) -> None:
        """Sums over some rows of it."""
        self._lost[kind, str(form)] += lost
        self._whole[kind, str(form)] += whole

    def relative(self, kind: str, form: Form) -> float:
        """Root mean square of what was rounded, over that of the weights."""
        return self._relative(kind, str(form))

    def _relative(self, kind: str, form: str) -> float:
        whole = self._whole[kind, form]
        return math.sqrt(self._lost[kind, form] / whole) if whole else 0.0

    def lines(self) -> Iterable[str]:
        """``112 Q4_K as 4 bits over 32 in two products (exact)``"""
        for (kind, form), count in self._matrices.items():
            lost = self._relative(kind, form)
            yield f"{count} {kind} {form} ({f'relative error {lost:.2g}' if lost else 'exact'})"


def _squares(values: NDArray[Any]) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


def _squares_of_weights(rows: Rows) -> float:
    """``(step * code + offset) ** 2``, summed without making the weights."""
    assert rows.offsets is not None
    codes = rows.codes.reshape(*rows.steps.shape, -1).astype(np.float32)
    linear, square = codes.sum(2), np.einsum("rgb,rgb->rg", codes, codes)
    blocks = square * rows.steps**2 + 2 * linear * rows.steps * rows.offsets + codes.shape[2] * rows.offsets**2
    return float(blocks.sum(dtype=np.float64))
