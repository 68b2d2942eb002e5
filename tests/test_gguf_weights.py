"""The weights of every ggml type, in the form they get, against the package's own reading of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec.backends.openvino.runtime import ops, ov
from edgespec.backends.openvino.settings import FULL_PRECISION
from edgespec.errors import ConversionError
from edgespec.gguf import blocks, forms, tensors
from edgespec.gguf.convert import convert, ir_bytes, read_header
from edgespec.gguf.forms import Form, Losses, form_of
from edgespec.gguf.matrices import Matrix, given
from edgespec.gguf.tensors import Stored
from tests import tiny_gguf

MATRIX = "blk.0.ffn_up.weight"  # (512, 256): no rows are moved


def stored(folder: Path, quantize: str, **options: Any) -> dict[str, Stored]:
    path = tiny_gguf.write(folder / "tiny.gguf", quantize=quantize, hidden=256, layers=1, **options)
    return tensors.read(read_header(path))


def truth(path: Path, name: str) -> NDArray[np.float32]:
    import gguf

    [tensor] = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name]
    values: NDArray[np.float32] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return values


def computed(matrix: Matrix) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The weights by OpenVINO's own arithmetic: in a product with the identity, and looked up, if they can be."""
    x = ops.parameter([1, -1, matrix.columns], np.float32)
    ids = ops.parameter([1, -1], np.int64)
    product = matrix.product(*given(x, matrix.columns, matrix.form))
    rows = matrix.lookup(ids) if matrix.form.offsets != "digits" else ops.convert(ids, "f32")
    model = ov.Model([ops.result(product), ops.result(rows)], [x, ids], "matrix")
    found = ov.compile_model(model, "CPU", FULL_PRECISION)(
        [np.eye(matrix.columns, dtype=np.float32)[None], np.arange(matrix.rows)[None]]
    )
    weights = found[0][0].T.copy()
    return weights, weights if matrix.form.offsets == "digits" else found[1][0].copy()


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("kind", forms.QUANTIZATIONS)
def test_weights_are_the_files(tmp_path: Path, kind: str, table: bool) -> None:
    """A type whose codes fit is exact, but for the last digit of a sum; the others are within half a step. Minima in
    digits are within half of the lowest."""
    matrix, losses = stored(tmp_path, kind)[MATRIX], Losses()
    expected = truth(tmp_path / "tiny.gguf", MATRIX)
    form = form_of(kind, 256, "faithful", table=table)
    made = Matrix([matrix], form, losses)
    exact = kind in forms.FLOATING or (kind in blocks.TAKE_APART and form.offsets != "digits")
    size = form.block or 32
    largest = np.abs(expected.reshape(-1, size)).max(1)
    if form.offsets != "none":  # a weight may be the small difference of two numbers
        largest = np.ptp(expected.reshape(-1, size), 1) * 8 + largest
    allowed = largest * (2**-22 if exact else 1 / 253)
    if form.offsets == "digits":
        offsets = forms.encoded(matrix, slice(0, 512), form_of(kind, 256, "faithful", table=True), losses).offsets
        assert offsets is not None
        offsets = np.abs(offsets)
        allowed = np.repeat(offsets.max(1), 256 // size) / (3600 if form.bits == 4 else 60000) + largest * 2**-20
    for found in computed(made):
        assert (np.abs(found - expected).reshape(-1, size).max(1) <= allowed).all()
    [line] = losses.lines()
    assert line.startswith(f"1 {kind} {form} (") and line.endswith("(exact)" if exact else ")")
    lost = float(np.sqrt(((computed(made)[0] - expected) ** 2).sum() / (expected**2).sum()))
    assert losses.relative(kind, form) == pytest.approx(lost, rel=1e-3) if not exact else lost < 1e-6
    assert lost < (0.001 if form.offsets == "digits" else 0.01)


@pytest.mark.parametrize("kind", forms.QUANTIZATIONS)
def test_no_more_is_stored_than_is_said(tmp_path: Path, kind: str) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", quantize=kind, hidden=256, layers=1)
    (tmp_path / "ir").mkdir()
    header = read_header(path)
    convert(header, tmp_path / "ir", name="tiny", source="tiny")
    size = (tmp_path / "ir" / "openvino_model.bin").stat().st_size
    assert 0 < ir_bytes(header) - size < 1 << 20


def test_codes_lie_around_zero(tmp_path: Path) -> None:
    """What 8-bit activations round is multiplied with the codes: they are as small as they can be."""
    for kind in ("Q4_1", "Q4_K", "Q5_1", "Q5_K", "Q2_K"):
        matrix = stored(tmp_path, kind)[MATRIX]
        rows = forms.encoded(matrix, slice(0, 512), form_of(kind, 256, "faithful"), Losses())
        codes = rows.codes[:, :256]
        assert codes.min() == -1 - codes.max(), kind


@pytest.mark.parametrize("kind", ["F32", "Q4_K", "Q5_0"])
def test_int8_is_within_half_a_step_of_a_row(tmp_path: Path, kind: str) -> None:
    matrix = stored(tmp_path, kind)[MATRIX]
    expected = truth(tmp_path / "tiny.gguf", MATRIX)
    step = (expected.max(1, keepdims=True, initial=0) - expected.min(1, keepdims=True, initial=0)) / 255
    close = 0.5 * step * (1 + 2**-9) + 2**-10 * np.abs(expected)
    for found in computed(Matrix([matrix], form_of(kind, 256, "int8"), Losses())):
        assert (np.abs(found - expected) <= close).all()


def test_matrices_of_one_form_are_stacked(tmp_path: Path) -> None:
    all_of_them = stored(tmp_path, "Q4_K", kinds={"ffn_gate": "Q4_1"})
    names = [f"blk.0.ffn_{of}.weight" for of in ("gate", "up")]
    losses = Losses()
    made = Matrix([all_of_them[name] for name in names], form_of("Q4_K", 256, "faithful"), losses)
    expected = np.concatenate([truth(tmp_path / "tiny.gguf", name) for name in names])
    np.testing.assert_allclose(computed(made)[0], expected, atol=1e-3)
    assert len(list(losses.lines())) == 2


def test_numbers_that_f16_does_not_hold_stay(tmp_path: Path) -> None:
    def change(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if name == MATRIX:
            values[1, 1] = 1e5
        return values

    matrix = stored(tmp_path, "F32", change=change)
    found, _ = computed(Matrix([matrix[MATRIX]], Form(32, kind="F32"), Losses()))
    np.testing.assert_array_equal(found, truth(tmp_path / "tiny.gguf", MATRIX))
    assert found[1, 1] == np.float32(1e5)


@pytest.mark.parametrize(("kind", "at"), [("Q4_0", 0), ("Q4_1", 2), ("Q4_K", 2), ("Q6_K", 208), ("F16", 6)])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, kind: str, at: int) -> None:
    """Also those of a step or minimum whose codes are zero."""
    path = tiny_gguf.write(tmp_path / "tiny.gguf", quantize=kind, hidden=256, layers=1)
    begin = read_header(path).tensors[MATRIX].offset + at
    data = bytearray(path.read_bytes())
    data[begin : begin + 2] = np.float16(np.inf).tobytes()
    path.write_bytes(data)
    (tmp_path / "ir").mkdir()
    with pytest.raises(ConversionError, match=r"blk\.0\.ffn_up\.weight holds numbers that are not finite"):
        convert(read_header(path), tmp_path / "ir", name="tiny", source="tiny")
