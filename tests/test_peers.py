"""`edgespec bench peers`: workers survive failing runtimes, and runs are scheduled beside the baseline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgespec.cli import cli
from edgespec.errors import SettingError
from edgespec_bench.peers import measure, report
from edgespec_bench.peers import run as bench
from edgespec_bench.peers.base import Run, WeightFormats
from edgespec_bench.peers.entries import BASELINE, OWN_PLAIN, RUNTIMES, Runtime, choose
from edgespec_bench.peers.measure import CHAT_TURN, NO_REUSE, Measured, Results, Task, schedule
from edgespec_bench.peers.process import Process, RuntimeFailed, missing
from tests.peers_results import runtime

WEIGHT_FORMATS = WeightFormats("default")


@pytest.fixture(autouse=True)
def _fake_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])


@pytest.fixture
def fake() -> Iterator[Process]:
    process = Process("tests.peers_fake", patience_s=60)
    yield process
    process.close()


def test_garbage_on_standard_output_is_no_answer(fake: Process) -> None:
    loaded = fake.load(WEIGHT_FORMATS, "well", 2, None)
    assert loaded["versions"] == {"fake": "1.0"} and loaded["settings"] == "none"
    assert fake.generate([7], 3) == Run([7, 8, 9], [0.25, 0.375, 0.5], 4, 3, 2)
    assert fake.peak_bytes() > 1e7


def test_an_error_is_one_line_and_the_worker_goes_on(fake: Process) -> None:
    fake.load(WEIGHT_FORMATS, "raises 1", 2, None)
    with pytest.raises(RuntimeFailed, match=r"^ValueError: what a peer$"):
        fake.generate([7], 3)
    assert fake.generate([7], 3).tokens == [7, 8, 9]


def test_a_missing_weight_format_is_a_reason(fake: Process) -> None:
    with pytest.raises(RuntimeFailed, match=r"^no such model$"):
        fake.load(WEIGHT_FORMATS, "does not load", 2, None)


def test_a_death_is_reported_with_its_last_line_to_every_request(fake: Process) -> None:
    fake.load(WEIGHT_FORMATS, "dies 2", 2, None)
    fake.generate([7], 3)
    for _ in range(2):
        with pytest.raises(RuntimeFailed, match=r"code 3: .*out of luck"):
            fake.generate([7], 3)


def test_a_short_answer_is_a_failure(fake: Process) -> None:
    fake.load(WEIGHT_FORMATS, "short 1", 2, None)
    with pytest.raises(RuntimeFailed, match="2 tokens instead of 3"):
        fake.generate([7], 3)


def test_silence_ends() -> None:
    process = Process("time", patience_s=60)  # a module without an adapter
    with pytest.raises(RuntimeFailed, match="ended with code 1: AttributeError"):
        process.load(WEIGHT_FORMATS, "plain", 2, None)
    process.close()


def test_the_comparison_continues_without_runtimes_that_fail() -> None:
    runtimes = [
        runtime(OWN_PLAIN, "well"),
        runtime(BASELINE, "well"),
        runtime("dies", "dies 3"),  # the first answer is to the warm-up
        runtime("unloadable", "does not load"),
        runtime("no format", "well", ("onnx",)),
        runtime("stranger", "well", package="no-such-package"),
    ]
    task = Task([("chat", [5]), ("chat", [9]), ("code", [7])], list(range(9000)), [[1], [1, 2]], 4, 1, 2)
    run = measure.run(
        runtimes,
        WeightFormats("default", missing={"onnx": "no onnx here"}),
        task,
        start=lambda c: Process("tests.peers_fake"),
    )
    reasons = {name: measured.failed or "" for name, measured in run.measured.items()}
    assert reasons[OWN_PLAIN] == reasons[BASELINE] == ""
    assert "code 3" in reasons["dies"] and reasons["unloadable"] == "no such model"
    assert reasons["no format"] == "no onnx here" and reasons["stranger"] == "no-such-package is not installed"
    # "dies" answered one prompt of the first round, and is not visited in the second.
    assert [(r.prompt, r.round) for r in run.records if r.name == "dies"] == [(0, 0)]
    assert [(r.prompt, r.round) for r in run.records if r.name == OWN_PLAIN] == [(0, 0), (2, 0), (1, 1)]
    whole = run.measured[BASELINE]
    assert set(whole.ttft_s) == {"64", "2000", CHAT_TURN, NO_REUSE}
    assert set(run.measured[OWN_PLAIN].ttft_s) == {"64", "2000", CHAT_TURN}
    assert whole.load_cold_s and whole.load_warm_s and whole.peak_mb and whole.peak_mb > 10


def test_one_runtime_is_in_memory_at_a_time() -> None:
    running: list[Process] = []

    class Watched(Process):
        def __init__(self) -> None:
            assert not running
            running.append(self)
            super().__init__("tests.peers_fake")

        def close(self) -> None:
            super().close()
            running.remove(self)

    runtimes = [runtime(OWN_PLAIN, "well"), runtime(BASELINE, "well"), runtime("raises", "raises 2")]
    task = Task([("chat", [5])], list(range(9000)), [], 4, 1, 2)
    run = measure.run(runtimes, WeightFormats("default"), task, start=lambda c: Watched())
    assert not running and {r.name for r in run.records} == {OWN_PLAIN, BASELINE}


def test_the_rounds_share_the_prompts_of_every_category() -> None:
    prompts = [(category, [1]) for category in ("chat", "code") for _ in range(3)]
    task = Task(prompts, [], [], 4, 1, 2)
    assert measure.rounds(task) == [[0, 2, 3, 5], [1, 4]]
    assert measure.rounds(replace(task, pairs=2)) == measure.rounds(task) * 2
    assert measure.rounds(replace(task, prompts=prompts[:1])) == [[0]]


def test_tokens_that_come_together_have_no_gap() -> None:
    run = Run([1, 2, 3, 4, 5], [0.25, 0.2501, 0.5, 0.5, 1.0])
    assert (run.ttft_s, run.total_s, run.first) == (0.25, 1.0, 2)
    assert run.gaps_s == pytest.approx([0, 0.2499, 0, 0.5]) and run.gaps_s[0] == 0
    assert measure.decode_speed(run) == 4.0


def test_nothing_behind_an_end_token_counts() -> None:
    run = Run(list(range(20)), [float(second) for second in range(20)], proposed=7)
    assert run.until({12}) == Run(list(range(13)), run.at_s[:13], proposed=7)
    assert run.until({3}) == run, "too little would be left"
    assert run.until({99}) == run


def test_the_engine_that_edgespec_chooses_does_not_run_twice() -> None:
    """The fake adapter reports the same settings for all, so the later entries are duplicates of the first two."""
    names = {OWN_PLAIN: "plain", BASELINE: "auto", "edgespec e plain": "plain", "edgespec e auto": "auto"}
    runtimes = [Runtime(name, "edgespec", mode, "edgespec", (), "") for name, mode in names.items()]
    task = Task([("chat", [5])], list(range(9000)), [[1], [1, 2]], 4, 1, 2)
    run = measure.run(runtimes, WeightFormats("default"), task, start=lambda c: Process("tests.peers_fake"))
    assert [m.duplicate_of for m in run.measured.values()] == [None, None, OWN_PLAIN, BASELINE]
    assert {record.name for record in run.records} == {OWN_PLAIN, BASELINE}
    again = run.measured["edgespec e auto"]
    assert again.load_cold_s is None and not again.ttft_s and again.failed is None
    assert [row[0] for row in report.cost_rows(run)] == [OWN_PLAIN, BASELINE]
    assert dict(report.absent(run))["edgespec e auto"] == f"same engine and settings as {BASELINE}"


def test_a_duplicate_runs_already_is_edgespec_and_drafts_alike() -> None:
    def duplicate_of(mode: str, *running: Runtime, module: str = "edgespec", settings: str = "exact, e") -> str | None:
        asked = Runtime("edgespec e auto", module, mode, "edgespec", (), "")
        measured = {BASELINE: Measured(settings="exact, e"), asked.name: Measured(settings=settings)}
        return measure.duplicate_of(asked, [*running, asked], Results(measured))

    chosen = Runtime(BASELINE, "edgespec", "auto", "edgespec", (), "")
    assert duplicate_of("e auto", chosen) == BASELINE
    assert duplicate_of("e auto") is None
    assert duplicate_of("e plain", chosen) is None
    assert duplicate_of("e auto", chosen, settings="exact, another") is None
    assert duplicate_of("e auto", chosen, module="openvino_genai") is None


def test_missing_packages_are_listed_before_the_measurements() -> None:
    there, stranger = runtime("there", "well"), runtime("stranger", "well", package="no-such-package")
    assert len(bench.list_missing([there])) == 1
    first, second = bench.list_missing([there, stranger, stranger])
    assert first.startswith("1 runtimes")
    assert second.startswith("2 more cannot run: no-such-package is not installed; pip install")


@pytest.mark.parametrize("group", [2, 8])
def test_every_turn_is_near_one_of_the_baseline(group: int) -> None:
    for count in range(20):
        for turn in range(count + 2):
            others = "abcdefghijklmnopqrst"[:count]
            turns = schedule(["Y", *others], turn, "Y", group)
            assert sorted(name for name, _ in turns if name != "Y") == list(others)
            for index, (_, baseline_turn) in enumerate(turns):
                assert turns[baseline_turn][0] == "Y" and abs(index - baseline_turn) <= group / 2
    assert schedule(["Y", "a", "b"], 1, "Y", group)[1][0] == "b"


def test_runtimes_are_chosen_by_the_beginning_of_their_names() -> None:
    assert choose(None) == list(RUNTIMES)
    assert [c.name for c in choose("openvino-genai")][2:] == [c.name for c in RUNTIMES if c.module == "openvino_genai"]
    with pytest.raises(SettingError, match="runtime"):
        choose("vllm")
    assert missing(runtime("x", "plain", package="edgespec no-such-package")) == "no-such-package is not installed"
    assert all(any(c.plain == other.name for other in RUNTIMES) for c in RUNTIMES)


def test_a_short_comparison_with_the_real_edgespec(
    tiny_ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "TTFT_TOKENS", (8,))
    monkeypatch.setattr(measure, "MEMORY_PROMPT", 16)
    monkeypatch.setattr(bench, "CHAT", (("Hi", "Ho"), ("And?", "")))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"kind": "code", "text": "def add(a, b):\\n    return a + b\\n\\ndef sub(a, b):\\n"}\n')
    arguments = ["bench", "peers", "-m", str(tiny_ir.parent), "--only", "edgespec auto"]
    arguments += ["--prompts", str(prompts), "--new-tokens", "8"]
    page = tmp_path / "page.md"
    arguments += ["--report", str(page)]
    monkeypatch.setattr("sys.argv", ["edgespec", *arguments])
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert [line["same"] for line in summary["decoding"]] == [1, 1, 1, 1]
    assert set(summary["runtimes"]) == {OWN_PLAIN, BASELINE}
    assert all(c["failed"] is None and c["ttft_s"][CHAT_TURN] > 0 for c in summary["runtimes"].values())
    text = page.read_text(encoding="utf-8")
    assert "| edgespec auto |" in text
    typed = text.split("The figures are by `")[1].split("`")[0]
    assert typed.startswith("edgespec bench peers -m ") and ' --only "edgespec auto" --prompts prompts.jsonl ' in typed
