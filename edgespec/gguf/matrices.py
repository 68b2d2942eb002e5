"""Weight matrices of a graph: constants in their form (``gguf.forms``), products with them, and rows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgespec.backends.openvino.runtime import ops, ov
from edgespec.gguf.forms import GIVEN, TABLES, Form, Losses, encoded
from edgespec.gguf.tensors import Stored

_ZERO = 8  # of 4-bit codes: unsigned ones are what all kernels know


class Matrix:
    """``(out, in)`` of one tensor, or of several of one form that are stacked."""

    def __init__(self, tensors: Sequence[Stored], form: Form, losses: Losses) -> None:
        self.form = form
        self.rows = sum(tensor.shape[0] for tensor in tensors)
        self.columns = tensors[0].shape[1]
        self._wide = self.columns + form.further(self.columns)
        self._name = "+".join(tensor.name for tensor in tensors)
        self._offsets: Any = None
        self.parameter: Any = None
        """what takes the weights, if they are given"""
        if form.kind == GIVEN:
            rows = -1 if self._name in TABLES else self.rows  # of a table, only those that are used
            self._weights = self.parameter = ops.parameter([rows, self.columns], np.float32, name=self._name)
            return
        for tensor in tensors:
            losses.count(tensor.kind, form)
        self._weights = self._as_they_are(tensors) if form.kind else self._compressed(tensors, losses)

    def product(self, x: Any, sums: Any, bias: Any = None) -> Any:
        """``x @ weights.T + bias``. x, sums: from ``given``.

        The bias goes to the last product, where the engine adds it while it multiplies.
        """
        product = ops.matmul(x, self._weights, False, True)
        if self._offsets is None:
            return product if bias is None else ops.add(product, bias)
        second = ops.matmul(sums, self._offsets, False, True)
        return ops.add(product, second if bias is None else ops.add(second, bias))

    def lookup(self, ids: Any) -> Any:
        """The rows of ids."""
        found = ops.gather(self._weights, ids, integers(0))
        if self._offsets is None:
            return found
        offsets = ops.unsqueeze(ops.gather(self._offsets, ids, integers(0)), integers(3))
        repeated = ops.tile(offsets, integers(1, 1, 1, self.form.block))  # each for every number of its block
        return ops.add(found, ops.reshape(repeated, integers(0, 0, self.columns), True))

    def _as_they_are(self, tensors: Sequence[Stored]) -> Any:
        """Numbers in the file's own type."""
        kinds = {"F32": ov.Type.f32, "F16": ov.Type.f16, "BF16": ov.Type.bf16}
        tensor = ov.Tensor(kinds[self.form.kind], ov.Shape([self.rows, self.columns]))
        data, at = _bytes_of(tensor).reshape(self.rows, -1), 0
        for stored in tensors:
            for part in stored.parts():
                stored.rows(part)  # refuses what is not finite
                data[at + part.start : at + part.stop] = stored.bytes(part)
            at += stored.shape[0]
        constant = self._constant(tensor)
        return constant if self.form.kind == "F32" else ops.convert(constant, "f32")

    def _compressed(self, tensors: Sequence[Stored], losses: Losses) -> Any:
        form, blocks = self.form, self._wide // self.form.block
        kind = ov.Type.u4 if form.bits == 4 else ov.Type.u8 if form.zeros else ov.Type.i8
        shape = [self.rows, self._wide] if form.zeros else [self.rows, blocks, form.block]
        tensor = ov.Tensor(kind, ov.Shape(shape))
        codes = _bytes_of(tensor).reshape(self.rows, -1)
        steps = np.empty((self.rows, blocks), np.float16 if form.zeros else np.float32)
        offsets = np.empty((self.rows, blocks), np.float32) if form.offsets == "apart" else None
        zeros = np.empty((self.rows, 1), np.uint8) if form.zeros else None
        at = 0
        for stored in tensors:
            for part in stored.parts():
                made, to = encoded(stored, part, form, losses), slice(at + part.start, at + part.stop)
                codes[to] = _nibbles(made.codes) if form.bits == 4 else made.codes.view(np.uint8)
                steps[to] = made.steps
                if offsets is not None and made.offsets is not None:
                    offsets[to] = made.offsets
                if zeros is not None and made.zeros is not None:
                    zeros[to] = made.zeros
            at += stored.shape[0]
        if offsets is not None:
            self._offsets = ops.constant(offsets, shared_memory=True)
        constant = self._constant(tensor)
        if zeros is not None:  # as NNCF writes it
            shifted = ops.subtract(ops.convert(constant, "f16"), ops.convert(ops.constant(zeros), "f16"))
            return ops.convert(ops.multiply(shifted, ops.constant(steps)), "f32")
        values = ops.convert(constant, "f32")
        if form.bits == 4:
            values = ops.subtract(values, ops.convert(ops.constant(_ZERO, ov.Type.u4), "f32"))
        scaled = ops.multiply(values, ops.constant(steps[:, :, None], shared_memory=True))
        return ops.reshape(scaled, integers(self.rows, self._wide), False)

    def _constant(self, tensor: Any) -> Any:
        constant = ops.constant(tensor, shared_memory=True)
        constant.set_friendly_name(self._name)
        return constant


def given(x: Any, columns: int, form: Form) -> tuple[Any, Any]:
    """What a product with matrices of this form takes: ``x`` of ``(batch, length, columns)``, which is wider if they
    have digits; and sums over each block of it, if their offsets are apart.

    Behind x are its sums, and once more for each lower digit, as much smaller as that one counts less; zeros fill the
    last block. (Chosen by index and multiplied with constants, since an engine spends time on every operation.)
    """
    if form.offsets == "none":
        return x, None
    count = columns // form.block
    blocks = ops.reshape(x, integers(0, 0, count, form.block), True)
    sums = ops.reduce_sum(blocks, integers(-1), False)
    if form.offsets == "apart":
        return x, sums
    column = np.arange(form.further(columns))
    place = column // count
    weight = np.where(place < form.digits, np.float32(form.radix) ** -place, 0).astype(np.float32)
    repeated = ops.gather(sums, ops.constant(column % count), integers(2))
    return ops.concat([x, ops.multiply(repeated, ops.constant(weight.reshape(1, 1, -1)))], -1), None


def integers(*values: Any) -> Any:
    """A constant: of one whole number a scalar, of several or of a list a row."""
    return ops.constant(np.array(values[0] if len(values) == 1 else values, np.int64))


def _bytes_of(tensor: Any) -> NDArray[Any]:
    """Its memory."""
    memory: NDArray[Any] = tensor.data.reshape(-1).view(np.uint8)
    return memory


def _nibbles(codes: NDArray[Any]) -> NDArray[Any]:
    """Two codes a byte, the first in the low half."""
    shifted = (codes + np.int8(_ZERO)).view(np.uint8)
    packed: NDArray[Any] = shifted[:, 0::2] | shifted[:, 1::2] << 4
    return packed
