"""What is computed from the runs of peers, and the page that shows it."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgespec_bench.peers import plots, report
from edgespec_bench.peers.entries import BASELINE, OWN_PLAIN
from edgespec_bench.peers.goals import goals
from edgespec_bench.peers.measure import CHAT_TURN, NO_REUSE, Measured, Results
from edgespec_bench.peers.summary import ALL, Line, lines
from tests.peers_results import RESULTS, record


def test_drafted_texts_are_compared_with_the_plain_run_that_peer_logits_duplicates() -> None:
    records = [record(OWN_PLAIN, 0, 5, 10, [1, 2]), record("edgespec openvino auto", 0, 9, 10, [1, 2])]
    measured = {OWN_PLAIN: Measured(), "edgespec openvino plain": Measured(), "edgespec openvino auto": Measured()}
    drafted = lines(Results(measured, records))[-1]
    assert drafted.name == "edgespec openvino auto" and drafted.same is None
    measured["edgespec openvino plain"].duplicate_of = OWN_PLAIN
    assert lines(Results(measured, records))[-1].same == 1


def test_ratios_compare_neighbouring_runs() -> None:
    found = {(line.name, line.category): line for line in lines(RESULTS)}
    assert found["openvino-genai plain", "chat"] == Line("openvino-genai plain", "chat", 8, 1.0, 2.0, 0.6, 1.0, 1, 1)
    assert found["openvino-genai plain", "code"].to_plain == 0.5
    overall = found["openvino-genai plain", ALL]
    assert (overall.to_auto, overall.to_plain, overall.same, overall.of) == (0.75, 1.25, 2, 2)
    assert found[OWN_PLAIN, ALL].to_auto == 0.75 and found[OWN_PLAIN, ALL].to_plain == 1.0


def test_goals_are_of_runtimes_that_ran() -> None:
    assert goals(Results({}, []), []) == []
    ran = Measured(ttft_s={"2000": [6.0]}, peak_mb=500)
    edgespec_runtime = Measured(ttft_s={"2000": [6.6], CHAT_TURN: [0.4], NO_REUSE: [1.0]}, peak_mb=400)
    found = goals(
        Results({BASELINE: edgespec_runtime, OWN_PLAIN: edgespec_runtime, "openvino-genai plain": ran}, []), []
    )
    assert [(goal.what.partition(":")[0], goal.reached) for goal in found] == [
        ("first token after 2000", False),
        ("first token of turn 5", True),
        ("peak memory", True),
    ]


def test_gaps_are_of_all_answers_of_a_category() -> None:
    records = [
        replace(record(BASELINE, prompt, 5, 5, [1, 2], category), gaps_s=gaps)
        for prompt, category, gaps in ((0, "chat", [0.3, 0.0]), (1, "code", [0.1] * 38))
    ]
    found = {line.category: line for line in lines(Results({BASELINE: Measured()}, records))}
    assert (found["chat"].tpot_p50_s, found["chat"].longest_gap_s) == (0.15, 0.3)
    both = found[ALL]
    assert both.tpot_p50_s == pytest.approx(0.1) and (both.tpot_p95_s, both.longest_gap_s) == (0.15, 0.3)
    facts = report.Facts("edgespec bench peers", "m", {}, 2, 3, 1, {"chat": 1}, "2026-01-02")
    page = report.markdown(Results({BASELINE: Measured()}, records), facts, [])
    assert "| edgespec auto | 100 | 150 | 300 |" in page and "| edgespec auto | 5.0 | 5.0 | 5.0 |" in page


def test_same_text_is_the_same_tokens_as_its_own_plain_decoding() -> None:
    name = "openvino-genai draft_model"
    drafted = Results(
        RESULTS.measured,
        [*RESULTS.records, record(name, 0, 8, 8, [1, 2, 9]), record(name, 1, 9, 9, [4, 5, 7], "code")],
    )
    found = {(line.name, line.category): line for line in lines(drafted)}
    assert (found[name, ALL].same, found[name, ALL].of) == (1, 2)
    alone = Results(RESULTS.measured, [record(name, 0, 8, 8, [1, 2, 9])])
    assert lines(alone)[0].same is None


def test_the_page_holds_what_was_measured(tmp_path: Path) -> None:
    machine = {"cpu": "CPU X", "cores": 2}
    facts = report.Facts("edgespec bench peers", "m", machine, 2, 3, 1, {"chat": 1, "code": 1}, "2026-01-02")
    page = report.markdown(RESULTS, facts, ["b/decoding.svg"])
    assert "| openvino-genai plain | 11.5 | 0.75 | 1.25 | 60% | 1.00 | 2 of 2 |" in page
    assert "| openvino-genai plain | 50 | - | 20 | - |" in page
    assert "| edgespec plain | 200 | - | - | - |" in page
    assert "| openvino-genai plain | 1.50 | - | 512 |" in page
    assert "| openvino-genai draft_model | RuntimeError: no / pipe |" in page
    assert "![b/decoding.svg](b/decoding.svg)" in page and "CPU X" in page and "2 threads" in page
    assert "| decoding: edgespec auto / openvino-genai plain, code | 2.00 | >= 1.6 | yes |" in page
    assert "| decoding: edgespec auto / openvino-genai plain, chat | 1.00 | >= 1.4 | no |" in page
    assert "draft_model |" not in page.partition("## Goals")[2], "it did not run"
    if find_spec("matplotlib"):
        drawn = plots.draw(RESULTS, tmp_path / "b")
        assert [path.name for path in drawn] == [
            "decoding.svg",
            "decoding-chat.svg",
            "decoding-code.svg",
            "first-token.svg",
        ]
        assert all(path.stat().st_size > 1000 for path in drawn)


def test_the_published_page_has_the_words_of_its_generator() -> None:
    """All lines but those with figures: who changes the generator's text changes the page too."""
    facts = report.Facts("edgespec bench peers", "m", {"cpu": "CPU X"}, 2, 3, 1, {"chat": 1}, "2026-01-02")
    published = (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    with_figures = (
        "The figures are by",
        "m. cpu",
        "| openvino-",
        "| edgespec ",
        "| --- ",
        "| runtime | chat",
        "| decoding: ",
    )
    if_some_did_not_run = ("Not run, or not to the end:", "| runtime | reason |")
    for line in report.markdown(RESULTS, facts, []).splitlines():
        assert line.startswith(with_figures) or line in (*published, *if_some_did_not_run), line


def test_without_the_maintainers_goals_the_page_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not in the wheel."""
    facts = report.Facts("edgespec bench peers", "m", {"cpu": "CPU X"}, 2, 3, 1, {"chat": 1}, "2026-01-02")
    assert "## Goals" in report.markdown(RESULTS, facts, [])
    monkeypatch.setitem(sys.modules, "edgespec_bench.peers.goals", None)
    assert "## Goals" not in report.markdown(RESULTS, facts, [])
    settings = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'exclude = ["bench/edgespec_bench/peers/goals.py"]' in settings
