"""Measurements run, and end with one line of JSON."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from edgespec.bench import verify
from edgespec.drafters.base import NoDrafter
from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline


def test_bench_verify_compares_both_rules_at_each_temperature(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "read_prompts", lambda: [{"kind": "code", "text": "def add(a, b):\n    return a +"}])
    verify.bench_verify(pipeline, new_tokens=6)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["temperatures"]
    assert list(figures) == ["0.3", "0.7", "1.0"]
    for at in figures.values():
        assert at["rejection_over_coupled"] > 0
        for rule in ("coupled", "rejection"):
            assert 0 <= at[rule]["acceptance_rate"] <= 1 <= at[rule]["block_efficiency"]
    with pytest.raises(SettingError, match="nothing to verify"):
        verify.bench_verify(SimpleNamespace(drafter=NoDrafter()))  # type: ignore[arg-type]
