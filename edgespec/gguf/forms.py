"""The form that the weights of each ggml type get: whole numbers that integer kernels multiply.

``weight = code * step + offset``, a step and perhaps an offset for each block of a row. Of a product, the offsets are a
second one, of the sums over each block of what is multiplied: so codes and steps alone go through the integer kernels,
and nothing is rounded. Codes lie around zero, because activations are in 8 bits there: what that rounds is multiplied
with the codes.

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

Weights = Literal["int8", "faithful"]
"""int8: every matrix in 8 bits again, with a step and a zero point a row, as NNCF's INT8_ASYM has it"""

FLOATING = {"F32": 32, "F16": 16, "BF16": 16}
RECODED = (
    "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "MXFP4",
)  # fmt: skip
QUANTIZATIONS = (*FLOATING, *TAKE_APART, *RECODED)

_FOUR_BITS = ("Q4_0", "Q4_1", "Q4_K", "Q2_K", "Q3_K")
_CENTRES = {"Q4_1": 8, "Q4_K": 8, "Q5_1": 16, "Q5_K": 16, "Q2_K": 2}
"""of types with minima, whose codes begin at zero"""
_BLOCKS = {"Q2_K": 16, "Q3_K": 16, "Q6_K": 128}
"""Numbers that share a step, 32 but for these. Q6_K has blocks of 16, which cost a byte for four numbers and time in
every kernel; in 8 bits a step for 128 numbers is fine enough: see docs/engines.md."""
_BLOCK = 32


@dataclass(frozen=True)
class Form:
    """Matrices of one form, and as many columns, can be stacked.

    bits: of a code; 16 and 32 are numbers as they are. block: numbers that share a step. zeros: the codes of a row are
    counted from its zero point.
    """

    bits: int
    block: int = 0
    offsets: bool = False
    zeros: bool = False
    kind: str = ""
    """of numbers as they are: a ggml type"""

    def __str__(self) -> str:
        if self.kind:
            return "as they are"
        over = "a row" if self.zeros else str(self.block)
        return f"as {self.bits} bits over {over}" + (" in two products" if self.offsets else "")

    @property
    def bits_per_weight(self) -> float:
        """Steps and offsets are float32: a float16 has too few digits for some products of two."""
        return self.bits + (0 if self.kind else (1 + self.offsets) * 32 / self.block)


def form_of(kind: str, columns: int, weights: Weights) -> Form:
    if weights == "int8":
        return Form(8, columns, zeros=True)
    if kind in FLOATING:
        return Form(FLOATING[kind], kind=kind)
    block = math.gcd(_BLOCKS.get(kind, _BLOCK), columns)
    return Form(4 if kind in _FOUR_BITS else 8, block, offsets=kind in _CENTRES)


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix in their form: codes from -8 or -128 on, or from 0 if there are zeros."""

    codes: NDArray[Any]
    """(rows, columns)"""
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
    if matrix.kind in TAKE_APART and not form.zeros:
        return _taken_apart(matrix, which)
    values = matrix.rows(which)
    rows = _by_row(values) if form.zeros else _by_block(values, form.block)
    losses.add(matrix.kind, form, values, rows.values())
    return rows


def _taken_apart(matrix: Stored, which: slice) -> Rows:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    data = matrix.bytes(which)
    parts = TAKE_APART[matrix.kind](data.reshape(-1, GGML_QUANT_SIZES[GGMLQuantizationType[matrix.kind]][1]))
    steps = matrix.finite(parts.steps).reshape(len(data), -1)
    codes = parts.codes.reshape(len(data), -1)
    if parts.minima is None:
        return Rows(codes, steps)
    centre = _CENTRES[matrix.kind]
    minima = matrix.finite(parts.minima).reshape(len(data), -1)
    return Rows(codes.view(np.int8) - np.int8(centre), steps, centre * steps - minima)


def _by_block(values: NDArray[Any], block: int) -> Rows:
    """To half a step, which is a 254th of the largest number of the block."""
    blocks = values.reshape(-1, block)
    steps = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    codes = np.rint(blocks / np.where(steps == 0, np.float32(1), steps)).astype(np.int8)
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
        self._lost[kind, str(form)] += _squares(values - became)
        self._whole[kind, str(form)] += _squares(values)

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
