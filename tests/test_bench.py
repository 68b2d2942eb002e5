"""The measurements measure what they say: on the real pair, very short."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

import edgespec
from edgespec.adaptive.calibration import ForwardTimes
from edgespec.adaptive.draft_cost import CallCost
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.bench import report, simulation, speed
from edgespec.bench.prompts import Prompt, behind, encode, read, read_before
from edgespec.bench.simulation import compare_here, compare_overlapped
from edgespec.cli import cli
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.recycling import Recycling
from edgespec.errors import BackendError, SettingError
from edgespec.machine import schedule_choice
from edgespec.pipeline import Pipeline
from edgespec.protocols import HeadDrafter, Model
from edgespec.stats import Guessed, Stats
from edgespec.types import Round
from edgespec_bench import crop, verification
from edgespec_bench.child import run_python
from tests.conftest import load_ir, load_stateful


@pytest.mark.real
def test_bench_drafters_compares_everyone_on_the_same_text(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        json.dumps({"kind": "code", "text": "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n"}) + "\n"
    )
    asked = ["--prompts", str(prompts), "--pairs", "1", "-n", "16", "--lengths", "2", "--beside", "ngram"]
    result = CliRunner().invoke(cli, ["bench", "drafters", *asked])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    policies = figures["categories"]["code"]
    assert set(policies) == {"none", "fastdraft", "ngram", "recycling", "auto", "k = 2", "--draft ngram"}
    assert set(figures["same_tokens"].values()) == {"1 of 1"}
    assert policies["none"]["block_efficiency"] == 1.0 and policies["none"]["ratio_to_plain"] == 1.0
    assert policies["k = 2"]["acceptance_rate"] > 0
    assert figures["categories"]["all"]["auto"] == policies["auto"]


@pytest.mark.real
def test_to_compare_with_no_drafts_is_refused() -> None:
    result = CliRunner().invoke(cli, ["bench", "drafters", "--beside", "none"])
    assert isinstance(result.exception, SettingError)
    assert "nothing to compare" in str(result.exception)


def test_a_fixed_length_beside_the_lengths_to_compare_is_refused() -> None:
    result = CliRunner().invoke(cli, ["bench", "drafters", "-k", "3"])
    assert isinstance(result.exception, SettingError)
    assert "got 3. Name them: --lengths 3" in str(result.exception)


def test_prompts_can_be_few_and_behind_other_text(tmp_path: Path, pipeline: Pipeline) -> None:
    kinds = [prompt.category for prompt in read(per_category=1)]
    assert len(kinds) == len(set(kinds)) > 1
    prompt = read()[0]
    assert behind(pipeline, prompt, 0) == encode(pipeline, prompt)
    longer = behind(pipeline, prompt, 100)
    assert len(longer) == 100 + len(encode(pipeline, prompt)) and longer[100:] == encode(pipeline, prompt)
    (tmp_path / "bad.jsonl").write_text('{"kind": "code"}\n')
    with pytest.raises(SettingError, match="cannot read prompts"):
        read(tmp_path / "bad.jsonl")


def test_bench_verify_compares_both_rules_at_each_temperature(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verification, "read", lambda: [Prompt("code", "def add(a, b):\n    return a +", raw=True)])
    verification.bench_verify(pipeline, new_tokens=6)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["temperatures"]
    assert list(figures) == ["0.3", "0.7", "1.0"]
    for at in figures.values():
        assert at["rejection_over_coupled"] > 0
        for rule in ("coupled", "rejection"):
            assert 0 <= at[rule]["acceptance_rate"] <= 1 <= at[rule]["block_efficiency"]
    with pytest.raises(SettingError, match="nothing to verify"):
        verification.bench_verify(SimpleNamespace(drafter=NoDrafter()))  # type: ignore[arg-type]


def test_no_turn_of_a_measurement_remembers_another_or_reads_the_prompt() -> None:
    calls: list[str] = []
    pipeline = SimpleNamespace(
        forget=lambda: calls.append("forget"),
        tokenizer=SimpleNamespace(encode=lambda text, raw: [1, 2, 3]),
        template=None,
        target=SimpleNamespace(prefill=lambda ids: calls.append(f"read {ids}")),
        generate=lambda *args, **options: calls.append("generate"),
    )
    for speculative in (True, False, True):
        speed._run(pipeline, Prompt("code", "x", raw=True), 4, speculative=speculative)  # type: ignore[arg-type]
    assert calls == ["forget", "read [1, 2]", "generate"] * 3


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('the engine\\nis gone')", "failed: is gone"),
        ("from edgespec.errors import NoSuchModel; raise NoSuchModel('no such model')", "failed: no such model"),
        ("import sys; print('error: no such model', file=sys.stderr); sys.exit(2)", "failed: no such model"),
        ("import os; os._exit(3)", "failed: it ended with code 3"),
    ],
)
def test_a_measured_process_that_fails_says_why_in_one_line(code: str, said: str) -> None:
    with pytest.raises(BackendError, match=said) as caught:
        run_python("-c", code)
    assert "\n" not in str(caught.value)


def test_the_memory_of_no_model_is_an_error() -> None:
    result = CliRunner().invoke(cli, ["bench", "memory", "-m", "no-such-model"])
    assert isinstance(result.exception, BackendError)
    assert "no such model; got no-such-model" in str(result.exception)


@pytest.mark.real
def test_no_drafter_keeps_what_a_repetition_could_copy(pipeline: Pipeline) -> None:
    ids = encode(pipeline, read(per_category=1)[0])
    assert pipeline.arbiter is not None
    [recycling] = [one.drafter for one in pipeline.arbiter._all if isinstance(one.drafter, Recycling)]
    pipeline.generate(ids, max_new_tokens=8, ignore_eos=True)
    assert (recycling._successors >= 0).any()
    read_before(pipeline, ids)
    assert (recycling._successors < 0).all()


@pytest.mark.slow
def test_tables_have_three_digits_and_no_powers_of_ten(capsys: pytest.CaptureFixture[str]) -> None:
    report.show_table("times", ["ms"], [(0.01234,), (99.94,), (1234.4,)])
    shown = capsys.readouterr().out
    assert all(f" {cell} " in shown for cell in ("0.0123", "99.9", "1234")), shown


@pytest.mark.parametrize("load", [load_ir, load_stateful])
def test_bench_crop_times_steps_behind_rejected_rows(
    tiny_ir: Path, load: Callable[[Path], Model], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crop, "TEXT_IDS", range(50))
    target, widths = load(tiny_ir), []
    told = target.forward

    def forward(tokens: Sequence[int], *more: Any, **options: Any) -> Any:
        widths.append(len(tokens))
        return told(tokens, *more, **options)

    monkeypatch.setattr(target, "forward", forward)
    crop.bench_crop(cast("Pipeline", SimpleNamespace(target=target)), repeats=3)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["contexts"]
    assert list(figures) == ["256"] and all(figure > 0 for figure in figures["256"].values())
    assert widths == [256] + [1] * 15 + [4] * 9 + [1] * 15


@pytest.mark.slow  # on a tiny pair below
def test_runs_are_compared_with_their_simulation(pipeline: Pipeline) -> None:
    """How near they are is the machine's affair; here only that both are of the same run."""
    plain, drafted = compare_here(pipeline, (2,), new_tokens=12)
    assert (plain.drafter, plain.k, plain.acceptance_rate) == ("none", 0, 0.0)
    assert drafted.drafter == "fastdraft" and drafted.k == 2 and 0 < drafted.acceptance_rate <= 1
    for one in (plain, drafted):
        assert one.engine == "openvino" and 0.2 < one.simulated / one.measured < 5


def test_so_they_are_on_a_tiny_pair(tiny_ir: Path) -> None:
    pair = edgespec.load(tiny_ir.parent, draft=str(tiny_ir.parent), numerics="fast")
    plain, *drafted = compare_here(pair, (1, 3), new_tokens=8)
    assert (plain.drafter, plain.k, plain.acceptance_rate, plain.holds) == ("none", 0, 0.0, None)
    assert [one.k for one in drafted] == [1, 3]
    for one in drafted:
        assert one.schedule == "synchronous" and one.plain is plain and one.drafter != "none"
        assert 0 < one.acceptance_rate <= 1 and one.simulated > 0 and one.measured > 0


def test_the_costs_of_a_head_are_those_of_its_calibration() -> None:
    target_s = ForwardCost(ForwardTimes((1, 2), 0, 0, (0.01, 0.02), (0.01, 0.02)))
    target_s.scale(3.0)
    head = type("Head", (HeadDrafter,), {})()
    arbiter = SimpleNamespace(model=head, target_s=target_s, draft_s=CallCost(0.005))
    alone, target, draft = simulation._costs(cast("Pipeline", SimpleNamespace(arbiter=arbiter)), 2)
    assert alone == target and draft is not None and (draft.start_s, draft.forward(1, 5).seconds) == (0.005, 0.0)
    assert [target.forward(width, 5).seconds for width in (1, 2)] == [0.01, 0.02], (
        "what was learned since does not count"
    )


def test_the_only_round_of_an_overlapped_text_counts() -> None:
    """Else a text of one round would leave nothing to divide by."""
    rounds = [Round("m", 1, 1, 1, 2, 0.0, seconds, 0.0, width=1) for seconds in (3.0, 1.0)]
    assert simulation._rounds([Stats(rounds=rounds[:1], guessed=Guessed())]) == rounds[:1]
    assert simulation._rounds([Stats(rounds=rounds, guessed=Guessed())]) == rounds[1:]
    assert simulation._rounds([Stats(rounds=rounds)]) == rounds


def test_overlapped_runs_are_compared_too(tiny_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_choice, "available_cores", lambda: 2)
    pair = edgespec.load(tiny_ir.parent, draft=str(tiny_ir.parent), numerics="fast", schedule="overlapped")
    asked = count()
    is_ready = pair.target.ready
    monkeypatch.setattr(pair.target, "ready", lambda: next(asked) % 8 == 7 and is_ready())  # guesses come in time
    monkeypatch.setattr("edgespec.decode.overlapped.LEAST_SHARE", -math.inf)
    plain, drafted = compare_overlapped(pair, new_tokens=12)
    assert (plain.drafter, plain.k, plain.holds) == ("none", 0, None)
    assert drafted.schedule == "overlapped" and 0 < drafted.acceptance_rate <= 1 and drafted.plain is plain
    assert 0.05 < drafted.simulated / drafted.measured < 20
