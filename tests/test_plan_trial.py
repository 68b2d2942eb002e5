"""A plan at work: what a turn of it takes, and that a load of a plan that may not be taken stores nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgespec import loading
from edgespec.load_options import LoadOptions
from edgespec.machine.plans import Place, Plan
from edgespec.pipeline import Pipeline
from edgespec.plan_trial import LEAST_SHARE, Length, Runner
from edgespec.stats import Guessed, Stats
from edgespec.types import Round

PLAN = Plan(Place("CPU", "openvino"), Place("CPU", "openvino"))


@pytest.fixture
def pipeline(tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """As the planner loads it, in an empty cache."""
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    options = LoadOptions(device="auto", draft=str(tiny_ir.parent))
    pair, chosen = loading._fetched(str(tiny_ir.parent), options)
    return loading._opens(pair, options, chosen, brief=True)(PLAN)


def test_a_plan_is_loaded_in_seconds_and_stores_nothing(pipeline: Pipeline) -> None:
    assert pipeline.arbiter is not None and pipeline.arbiter.draft_s is not None
    assert pipeline.target.capabilities.numerics == "exact" and pipeline.arbiter.target_s.times.short == 64
    assert len(pipeline.arbiter.target_s.widths) <= 4
    assert not list(Path(os.environ["EDGESPEC_CACHE"]).glob("measured/*.json"))


def test_all_plans_write_the_same_text_whatever_they_like(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Runner(PLAN, pipeline)
    assert len(first.written) == 32 and first.turns == [] and first.warm_up.use_s > 0
    seen: list[list[int]] = []
    generate = pipeline.generate

    def noted(prompt: Any, **options: Any) -> Any:
        result = generate(prompt, **options)
        seen.append(result.token_ids)
        return result

    monkeypatch.setattr(pipeline, "generate", noted)
    other = Runner(PLAN, pipeline, [7] * 32, Length(share=0.5, repeats=2))
    assert seen == 2 * [[7] * 16, other.edit[:20]]
    assert other.written == [7] * 32


def test_what_the_draft_takes_to_read_the_prompt_counts(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads before the first round, or in it."""

    def took(prompt: Any, *, max_new_tokens: int, **options: Any) -> Any:
        round_ = Round("m", 0, 0, 0, max_new_tokens, 0.0, 3.0 * max_new_tokens, 0.0, width=1)
        stats = Stats(rounds=[round_])
        stats.prefill_s = 1.0 * max_new_tokens
        return type("Generation", (), {"stats": stats, "token_ids": [7] * max_new_tokens})()

    monkeypatch.setattr(pipeline, "generate", took)
    pace = Runner(PLAN, pipeline).turn()
    assert (pace.write_s, pace.copy_s) == (4.0, 4.0)


@pytest.mark.parametrize("overlapped", [False, True])
def test_the_draft_reads_once_for_a_part_of_an_answer_too(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, overlapped: bool
) -> None:
    """It takes 8 s here; a token takes 1 s, and a round writes two."""

    def took(prompt: Any, *, max_new_tokens: int, **options: Any) -> Any:
        late = 8.0 if overlapped else 0.0
        rounds = [Round("m", 0, 0, 0, 2, 0.0, 2.0 + late * (not i), 0.0, width=1) for i in range(max_new_tokens // 2)]
        stats = Stats(rounds=rounds, prefill_s=8.0 - late, guessed=Guessed() if overlapped else None)
        return type("Generation", (), {"stats": stats, "token_ids": [7] * max_new_tokens})()

    monkeypatch.setattr(pipeline, "generate", took)
    for share in (1.0, 0.5):
        runner = Runner(PLAN, pipeline, [7] * 32, Length(share))
        pace = runner.turn()
        assert (pace.write_s, pace.copy_s) == (1.0 + 8 / 32, 1.0 + 8 / len(runner.edit)), share


def test_answers_are_cut_or_repeated_to_fill_a_turn(pipeline: Pipeline) -> None:
    runner = Runner(PLAN, pipeline)
    runner.warm_up = replace(runner.warm_up, read_s=0.0001, write_s=0.5, copy_s=0.4)  # 32 s of answers
    assert runner.length_within(24.0).share == pytest.approx(0.75, abs=0.01)
    assert runner.length_within(1.0) == Length(LEAST_SHARE)
    assert runner.length_within(1.0, least_share=1.0) == Length()
    assert runner.length_within(100.0) == Length(repeats=3)
