"""Assembly: what is measured when a pair is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import edgespec
from edgespec.adaptive import calibration
from edgespec.adaptive.calibration import Beside, ForwardTimes
from edgespec.cli import cli
from edgespec.errors import ContextFull
from edgespec.protocols import Model
from edgespec.types import Numerics


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is measured, in an empty cache; quick, since what comes out does not matter here."""
    seen: list[str] = []

    def measure(model: Model, clock: Any, *, beside: Beside | None = None, **options: Any) -> ForwardTimes:
        seen.append("draft" if beside else "target")
        return ForwardTimes((2, 8), 64, 512, (0.001, 0.002), (0.001, 0.002), 0.001)

    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    monkeypatch.setattr(calibration, "measure", measure)
    return seen


@pytest.mark.parametrize(
    ("k", "numerics", "expected"),
    [
        (None, "exact", ["target", "draft"]),
        (None, "fast", ["target", "draft"]),
        (3, "exact", ["target"]),  # a round of fewer tokens is padded to the width that costs say
        (3, "fast", []),
        (0, "exact", []),
        (0, "fast", []),
    ],
)
def test_costs_are_measured_where_something_depends_on_them(
    measured: list[str], tiny_ir: Path, k: int | None, numerics: Numerics, expected: list[str]
) -> None:
    pair = edgespec.load(tiny_ir.parent, draft=str(tiny_ir.parent), numerics=numerics, num_draft_tokens=k)
    assert measured == expected
    run = pair.generate([5, 6, 7, 8], max_new_tokens=12, ignore_eos=True)
    assert len(run.token_ids) == 12 and (run.stats.proposed > 0 or k != 3)
    assert measured == expected


def test_what_plain_decoding_would_take_is_told_where_it_was_measured(measured: list[str], tiny_ir: Path) -> None:
    told = {}
    for k in (0, 3):
        ran = CliRunner().invoke(
            cli,
            ["run", "--explain", "-m", str(tiny_ir.parent), "-k", str(k), "-n", "8", "--ignore-eos", "--raw", "sea"],
        )
        assert ran.exit_code == 0, ran.output
        told[k] = "Without drafting a token is expected to take" in ran.stderr
    assert told == {0: False, 3: True}
    assert measured == ["target"]


@pytest.mark.parametrize(("length", "advised"), [(None, False), (32, True)])
def test_who_took_a_short_context_is_told_the_longest(tiny_ir: Path, length: int | None, advised: bool) -> None:
    pair = edgespec.load(tiny_ir.parent, draft="none", num_draft_tokens=0, context_length=length)
    longest = pair.bundle.manifest.generation.context_length
    with pytest.raises(ContextFull) as error:
        pair.generate([5] * ((length or longest) + 1))
    assert (f"load with a context_length of up to {longest}" in str(error.value)) is advised
