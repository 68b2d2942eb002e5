"""`edgespec bench peers`: workers survive failing runtimes, ratios compare neighbouring runs, the page is complete."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from edgespec import bundle
from edgespec.backends.openvino.settings import FULL_PRECISION
from edgespec.cli import cli
from edgespec.errors import SettingError
from edgespec.hub.catalog import default_folder
from edgespec_bench.peers import measure, plots, report
from edgespec_bench.peers import run as bench
from edgespec_bench.peers.base import Run, WeightFormats
from edgespec_bench.peers.convert_worker import NEVER, maps, whole_vocabulary
from edgespec_bench.peers.entries import BASELINE, OWN_PLAIN, RUNTIMES, Runtime, choose
from edgespec_bench.peers.goals import goals
from edgespec_bench.peers.measure import CHAT_TURN, NO_REUSE, Measured, Record, Results, Task, schedule
from edgespec_bench.peers.process import Process, RuntimeFailed, missing, start
from edgespec_bench.peers.summary import ALL, Line, lines
from edgespec_bench.peers.weights import Sources, prepare

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


def _runtime(name: str, mode: str, weight_formats: tuple[str, ...] = (), package: str = "edgespec") -> Runtime:
    return Runtime(name, "fake", mode, package, weight_formats, name)


def test_the_comparison_continues_without_runtimes_that_fail() -> None:
    runtimes = [
        _runtime(OWN_PLAIN, "well"),
        _runtime(BASELINE, "well"),
        _runtime("dies", "dies 3"),  # the first answer is to the warm-up
        _runtime("unloadable", "does not load"),
        _runtime("no format", "well", ("onnx",)),
        _runtime("stranger", "well", package="no-such-package"),
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

    runtimes = [_runtime(OWN_PLAIN, "well"), _runtime(BASELINE, "well"), _runtime("raises", "raises 2")]
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


def test_drafted_texts_are_compared_with_the_plain_run_that_peer_logits_duplicates() -> None:
    records = [_record(OWN_PLAIN, 0, 5, 10, [1, 2]), _record("edgespec openvino auto", 0, 9, 10, [1, 2])]
    measured = {OWN_PLAIN: Measured(), "edgespec openvino plain": Measured(), "edgespec openvino auto": Measured()}
    drafted = lines(Results(measured, records))[-1]
    assert drafted.name == "edgespec openvino auto" and drafted.same is None
    measured["edgespec openvino plain"].duplicate_of = OWN_PLAIN
    assert lines(Results(measured, records))[-1].same == 1


def test_missing_packages_are_listed_before_the_measurements() -> None:
    there, stranger = _runtime("there", "well"), _runtime("stranger", "well", package="no-such-package")
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


def _record(
    name: str, prompt: int, tok_per_s: float, baseline_tok_per_s: float, tokens: list[int], category: str = "chat"
) -> Record:
    return Record(name, prompt, category, 0, tok_per_s, baseline_tok_per_s, tokens, 2, 10, 6, 2)


RESULTS = Results(
    {
        OWN_PLAIN: Measured(versions={"edgespec": "1"}, ttft_s={"64": [0.1, 0.3]}),
        BASELINE: Measured(versions={"edgespec": "1"}),
        "openvino-genai plain": Measured(
            versions={"openvino-genai": "2"}, ttft_s={"64": [0.05], CHAT_TURN: [0.02]}, peak_mb=512.2, load_cold_s=1.5
        ),
        "openvino-genai draft_model": Measured(failed="RuntimeError: no | pipe"),
    },
    [
        _record(OWN_PLAIN, 0, 10, 20, [1, 2, 3]),
        _record(OWN_PLAIN, 1, 30, 30, [4, 5, 6], "code"),
        _record(BASELINE, 0, 20, 20, [1, 2, 3]),
        _record(BASELINE, 1, 30, 30, [4, 5, 6], "code"),
        # The machine was slow here: 8 tok/s next to 8 is as fast as the baseline, which is twice as fast as plain.
        _record("openvino-genai plain", 0, 8, 8, [1, 2, 9]),
        _record("openvino-genai plain", 1, 15, 30, [4, 5, 6], "code"),
    ],
)


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
        replace(_record(BASELINE, prompt, 5, 5, [1, 2], category), gaps_s=gaps)
        for prompt, category, gaps in ((0, "chat", [0.3, 0.0]), (1, "code", [0.1] * 38))
    ]
    found = {line.category: line for line in lines(Results({BASELINE: Measured()}, records))}
    assert (found["chat"].tpot_p50_s, found["chat"].longest_gap_s) == (0.0, 0.3)
    assert (found[ALL].tpot_p50_s, found[ALL].tpot_p95_s, found[ALL].longest_gap_s) == (0.1, 0.1, 0.3)
    facts = report.Facts("edgespec bench peers", "m", {}, 2, 3, 1, {"chat": 1}, "2026-01-02")
    page = report.markdown(Results({BASELINE: Measured()}, records), facts, [])
    assert "| edgespec auto | 100 | 100 | 300 |" in page and "| edgespec auto | 5.0 | 5.0 | 5.0 |" in page


def test_same_text_is_the_same_tokens_as_its_own_plain_decoding() -> None:
    name = "openvino-genai draft_model"
    drafted = Results(
        RESULTS.measured,
        [*RESULTS.records, _record(name, 0, 8, 8, [1, 2, 9]), _record(name, 1, 9, 9, [4, 5, 7], "code")],
    )
    found = {(line.name, line.category): line for line in lines(drafted)}
    assert (found[name, ALL].same, found[name, ALL].of) == (1, 2)
    alone = Results(RESULTS.measured, [_record(name, 0, 8, 8, [1, 2, 9])])
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
    with_figures = ("Written by", "m. cpu", "| openvino-", "| edgespec ", "| --- ", "| runtime | chat", "| decoding: ")
    for line in report.markdown(RESULTS, facts, []).splitlines():
        assert line.startswith(with_figures) or line in published, line


def test_runtimes_are_chosen_by_the_beginning_of_their_names() -> None:
    assert choose(None) == list(RUNTIMES)
    assert [c.name for c in choose("openvino-genai")][2:] == [c.name for c in RUNTIMES if c.module == "openvino_genai"]
    with pytest.raises(SettingError, match="runtime"):
        choose("vllm")
    assert missing(_runtime("x", "plain", package="edgespec no-such-package")) == "no-such-package is not installed"
    assert all(any(c.plain == other.name for other in RUNTIMES) for c in RUNTIMES)


def test_the_named_sources_are_used_as_they_are(tmp_path: Path) -> None:
    files = {"gguf": tmp_path / "m.gguf", "gguf_draft": tmp_path / "d.gguf"}
    with pytest.raises(SettingError, match="--gguf"):
        Sources(**files)
    for file in files.values():
        file.write_bytes(b"GGUF")
    with pytest.raises(SettingError, match="--hf-draft"):
        Sources(**files, hf_draft=tmp_path)
    found = prepare("default", None, ["gguf_draft"], Sources(**files), rows=512, tell=print)
    assert found.gguf_draft == str(files["gguf_draft"]) and found.onnx is None
    assert "--gguf-draft FILE" in prepare("default", None, ["gguf_draft"], rows=512, tell=print).missing["gguf_draft"]


def test_other_weights_in_a_named_folder_are_converted_anew(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1")
    first = Sources(hf=tmp_path).identity
    weights.write_bytes(b"22")
    assert Sources().identity != first != Sources(hf=tmp_path).identity


def test_a_draft_with_its_own_vocabulary_gets_the_targets(tmp_path: Path) -> None:
    import openvino as ov

    folder = default_folder()
    manifest = bundle.read(folder).manifest
    entry = manifest.drafters[0]
    assert entry.model is not None and entry.model.file is not None and entry.id_map is not None
    id_map, unknown, size = np.load(folder / entry.id_map), entry.unknown, manifest.target.vocab_size
    assert unknown is not None
    reads, columns = maps(id_map, unknown, size)
    whole_vocabulary(folder / entry.model.file, reads, columns, tmp_path / "openvino_model.xml")

    def logits(path: Path, ids: list[int]) -> NDArray[np.float32]:
        request = ov.Core().compile_model(path, "CPU", FULL_PRECISION).create_infer_request()
        n = len(ids)
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, n), np.int64),
            "position_ids": np.arange(n)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return np.array(request.infer(inputs)["logits"])[0]

    absent = next(token for token in range(size) if token not in id_map)
    peer_logits = logits(tmp_path / "openvino_model.xml", [int(id_map[11]), int(id_map[8000]), absent])
    own_logits = logits(folder / entry.model.file, [11, 8000, unknown])
    assert peer_logits.shape == (3, size) and own_logits.shape == (3, len(id_map))
    known = id_map >= 0
    assert np.array_equal(peer_logits[:, id_map[known]], own_logits[:, known])
    assert (np.delete(peer_logits, id_map[known], axis=1) == NEVER).all() and own_logits.min() > NEVER


@pytest.mark.real
def test_a_short_comparison_with_the_real_edgespec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "TTFT_TOKENS", (8,))
    monkeypatch.setattr(measure, "MEMORY_PROMPT", 16)
    monkeypatch.setattr(bench, "CHAT", (("Hi", "Ho"), ("And?", "")))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"kind": "code", "text": "def add(a, b):\\n    return a + b\\n\\ndef sub(a, b):\\n"}\n')
    arguments = ["bench", "peers", "--only", "edgespec auto", "--prompts", str(prompts), "--new-tokens", "8"]
    page = tmp_path / "page.md"
    result = CliRunner().invoke(cli, [*arguments, "--report", str(page)])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert [line["same"] for line in summary["decoding"]] == [1, 1, 1, 1]
    assert set(summary["runtimes"]) == {OWN_PLAIN, BASELINE}
    assert all(c["failed"] is None and c["ttft_s"][CHAT_TURN] > 0 for c in summary["runtimes"].values())
    assert "| edgespec auto |" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_openvino_genai_answers_with_the_tokens_of_its_own_plain_decoding() -> None:
    """Its draft, with the vocabulary that it was given here, has its tokens accepted."""
    pytest.importorskip("openvino_genai")
    pytest.importorskip("transformers")
    weight_formats = prepare("default", None, ("ir", "draft_ir"), rows=512, tell=print)
    assert not weight_formats.missing
    prompt = list(range(1000, 1016))
    answers = {}
    for runtime in choose("openvino-genai")[2:]:
        process = start(runtime)
        try:
            process.load(weight_formats, runtime.mode, 2, None)
            answers[runtime.mode] = process.generate(prompt, 12)
        finally:
            process.close()
    assert all(0 < answer.ttft_s < answer.total_s for answer in answers.values())
    assert answers["plain"].forwards == 11 and answers["plain"].proposed is None
    drafted = answers["draft_model"]
    assert drafted.proposed and drafted.forwards and drafted.forwards <= 11


@pytest.mark.slow  # transformers
def test_a_draft_with_merged_products_becomes_the_same_torch_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from safetensors.numpy import load_file

    from edgespec.backends.openvino.merge_matmuls import merge_products
    from edgespec.backends.openvino.runtime import ov
    from edgespec.hub import catalog
    from edgespec_bench.peers.convert_worker import torch_draft

    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2} | shape
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    xml = catalog.default_folder() / "draft" / "openvino_model.xml"
    model = ov.Core().read_model(xml)
    assert merge_products(model) == 6
    ov.serialize(model, tmp_path / "merged.xml")
    states = []
    for number, source in enumerate((xml, tmp_path / "merged.xml")):
        torch_draft(source, tmp_path / "target", tmp_path / str(number))
        states.append(load_file(tmp_path / str(number) / "model.safetensors"))
    assert states[0].keys() == states[1].keys()
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


def test_without_the_maintainers_goals_the_page_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not in the wheel."""
    facts = report.Facts("edgespec bench peers", "m", {"cpu": "CPU X"}, 2, 3, 1, {"chat": 1}, "2026-01-02")
    assert "## Goals" in report.markdown(RESULTS, facts, [])
    monkeypatch.setitem(sys.modules, "edgespec_bench.peers.goals", None)
    assert "## Goals" not in report.markdown(RESULTS, facts, [])
    settings = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'exclude = ["bench/edgespec_bench/peers/goals.py"]' in settings
