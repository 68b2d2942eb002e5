"""Exact numerics: the widths at which a forward gives the same bits are found by trying."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgespec.backends.exact_widths import ExactWidths, find_exact_widths, guess_exact_widths
from edgespec.backends.fake import FakeModel, random_table
from edgespec.errors import BackendError
from edgespec.types import Logits, Step
from tests.conftest import load_ir
from tests.tiny_models import build, export_ir


@pytest.mark.parametrize(
    ("arch", "weights"),
    [
        ("llama", "int4"),
        ("qwen3", "f32"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("llama", "int8"), ("phi3", "f16"), ("qwen2", "int8"), ("qwen3", "int4")]
        ),
    ],
)
def test_exact_numerics_hold_for_other_models_and_weights(tmp_path: Path, arch: str, weights: str) -> None:
    """Bit for bit: one text in windows of many widths, with rejected tokens between, after prefills of any chunking."""
    model = load_ir(export_ir(build(arch, tmp_path / "torch"), tmp_path / "ir", weights))
    text = [(11 * i + i * i) % 300 + 10 for i in range(128)]

    def logits(width: int, junk: int, first: int) -> Logits:
        model.cache.reset()
        for end in range(first, 64, first):
            model.prefill(text[:end])
        model.prefill(text[:64])
        rows = []
        for begin in range(64, 128, width):
            window = text[begin : begin + width]
            rows.append(model.forward([*window, *[3, 5, 7][:junk]]).logits[: len(window)].copy())
            model.cache.keep(range(len(window)))
        return np.concatenate(rows)

    expected = logits(8, 0, 64)
    for width, junk, first in [(1, 0, 64), (1, 3, 64), (2, 0, 1), (5, 2, 17), (16, 0, 33), (64, 0, 64), (61, 3, 2)]:
        assert np.array_equal(logits(width, junk, first), expected), (width, junk, first)


def test_the_exact_range_is_found_by_trying(tiny_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose narrow and wide forwards differ in the last bit gets the range between, or is refused."""
    table = random_table(50, seed=1)

    class Moody(FakeModel):
        same = range(5, 33)

        def forward(self, tokens, tree=None, **options):  # type: ignore[no-untyped-def]
            step = super().forward(tokens, tree, **options)
            return step if len(tokens) in self.same else Step(step.logits + np.float32(1e-5 * len(tokens)))

    assert find_exact_widths(Moody(table, 50)) == ExactWidths(5, 32)
    monkeypatch.setattr(Moody, "same", range(2, 65))
    assert find_exact_widths(Moody(table, 50)) == ExactWidths(2, 64)
    monkeypatch.setattr(Moody, "same", range(2, 300, 2))
    assert find_exact_widths(Moody(table, 50)) == ExactWidths(2, 64, 2), "an odd row runs another kernel"
    for odd in (11, 13):
        monkeypatch.setattr(Moody, "same", [width for width in range(1, 300) if width != odd])
        assert find_exact_widths(Moody(table, 50)) == ExactWidths(2, 64, 2), "no width stands for another"
    monkeypatch.setattr(Moody, "same", [4, *range(8, 300, 4)])
    assert find_exact_widths(Moody(table, 50)) == ExactWidths(4, 64, 4)
    monkeypatch.setattr(Moody, "same", range(20, 41))
    with pytest.raises(BackendError, match="Use --numerics fast"):
        find_exact_widths(Moody(table, 50))


def test_a_width_that_differs_now_and_then_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """As kernels do that sum in another order: most rows come out alike."""
    table = random_table(50, seed=1)

    class Fickle(FakeModel):
        def forward(self, tokens, tree=None, **options):  # type: ignore[no-untyped-def]
            step = super().forward(tokens, tree, **options)
            differs = len(tokens) == 1 and self.cache.length % 16 == 0
            return Step(step.logits + np.float32(1e-6)) if differs else step

    assert find_exact_widths(Fickle(table, 50)).least == 2


def test_a_model_of_letters_is_tried_with_its_own_ids() -> None:
    """ONNX Runtime refuses others, and OpenVINO reads something else."""
    table = random_table(27, seed=1)

    def read(text: tuple[int, ...]) -> Logits:
        assert text[-1] < 27
        return table(text)

    assert guess_exact_widths(FakeModel(read, 27)) == ExactWidths(1, 64)
    assert find_exact_widths(FakeModel(read, 27)) == ExactWidths(1, 64)


@pytest.mark.slow
def test_exact_numerics_hold_for_wide_layers(tmp_path: Path) -> None:
    """On an AVX2 machine these need five rows, not two: the reason why the range is tried."""
    torch = build("llama", tmp_path / "torch", hidden=3072, heads=48, kv_heads=12, layers=1, scale=0.02)
    model = load_ir(export_ir(torch, tmp_path / "ir", "int8"))
    text = [(11 * i + i * i) % 300 + 10 for i in range(128)]
    model.prefill(text[:64])
    expected = model.forward(text[64:]).logits.copy()
    for width in (1, 2, 3, 4, 5, 8, 31):
        model.cache.crop(64)
        assert np.array_equal(model.forward(text[64 : 64 + width]).logits, expected[:width]), width
