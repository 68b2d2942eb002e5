"""The overlapped schedule from ``load`` on: who can take it, whose threads, what it tells, when it is taken unasked."""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from click.testing import CliRunner

import edgespec
from edgespec.adaptive import calibration
from edgespec.adaptive.calibration import ForwardTimes
from edgespec.backends import cores
from edgespec.backends.cores import Threads
from edgespec.backends.openvino.paged import OpenVINOPagedModel
from edgespec.backends.openvino.settings import Settings
from edgespec.bench.prompts import Prompt
from edgespec.bench.simulation import _rounds
from edgespec.cli import cli
from edgespec.drafters.ngram import NGram
from edgespec.errors import EdgespecError, SettingError
from edgespec.machine import energy, schedule_choice
from edgespec.machine.schedule_choice import Schedules
from edgespec.pipeline import Pipeline
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Guessed, Stats
from edgespec.types import Round
from edgespec_bench.overlapped import _token_s, bench_overlapped
from tests.conftest import load_onnx

PROMPT = [5, 6, 7, 8]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty cache, where nothing takes long to measure."""
    times = ForwardTimes((2, 8), 64, 512, (0.001, 0.002), (0.001, 0.002), 0.001)
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    monkeypatch.setattr(calibration, "measure", lambda *_, **__: times)
    monkeypatch.setattr(schedule_choice, "available_cores", lambda: 2)


def load(tiny_ir: Path, **options: Any) -> Pipeline:
    return edgespec.load(tiny_ir.parent, **{"draft": str(tiny_ir.parent), "numerics": "fast", **options})


def threads_of(model: Any) -> int:
    return int(model.compiled.get_property("INFERENCE_NUM_THREADS"))


def test_each_model_has_its_own_threads_and_the_text_is_the_synchronous_one(tiny_ir: Path) -> None:
    overlapping, synchronous = (
        load(tiny_ir, schedule=schedule, numerics="exact") for schedule in ("overlapped", "synchronous")
    )
    assert overlapping.schedule == "overlapped" and synchronous.schedule == "synchronous"
    assert (threads_of(overlapping.target), threads_of(overlapping.draft_model)) == (1, 1)
    for sampling in (SamplingParams(), SamplingParams(temperature=0.9, seed=4)):
        options: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True, "sampling": sampling}
        ours, theirs = (pair.generate(PROMPT, **options) for pair in (overlapping, synchronous))
        assert ours.token_ids == theirs.token_ids
        assert ours.as_dict()["schedule"] == "overlapped" and ours.stats.guessed is not None
        assert theirs.as_dict()["guesses"] is None
    plain = overlapping.generate(PROMPT, max_new_tokens=24, ignore_eos=True, num_draft_tokens=0)
    lookup = overlapping.generate(PROMPT, max_new_tokens=24, ignore_eos=True, drafter=NGram())
    assert plain.stats.schedule == lookup.stats.schedule == "synchronous", "they have no draft model"


def test_the_number_of_threads_changes_no_logit(tiny_fast_ir: Path) -> None:
    """The target has fewer of them under this schedule, and exact numerics promise the same text."""
    text = [(31 * i + i * i) % 400 for i in range(400)]
    found = []
    for threads in (1, 2):
        settings = Settings.make("CPU", "exact").with_threads(threads)
        model = OpenVINOPagedModel(ov.Core(), tiny_fast_ir, "CPU", settings, capacity=512)
        model.prefill(text)
        found.append(model.forward([7, 8, 9, 10], width=16).logits.copy())
    assert np.array_equal(*found)


def test_onnx_runtime_takes_a_number_of_threads(tiny_ir: Path) -> None:
    from edgespec.backends.onnx.session import OnnxRuntimeModel

    form = load_onnx(tiny_ir, "fast").folder
    alone, all_cores = (OnnxRuntimeModel(form, "fast", capacity=64, threads=n) for n in (1, None))
    assert alone.threads == 1 and all_cores.threads == cores.available_cores()
    assert alone.fingerprint != all_cores.fingerprint or all_cores.threads == 1


def test_what_the_cpu_is_told() -> None:
    told = Settings.make("CPU", "exact").with_threads(3).properties
    assert told["INFERENCE_NUM_THREADS"] == "3" and told["ENABLE_CPU_PINNING"] == "NO"
    assert schedule_choice.threads("CPU", None) == Threads(1, 1)
    assert schedule_choice.threads("GPU", "CPU") is schedule_choice.threads("GPU.0", None) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft": "none"}, "got draft none: a lookup takes no time"),
        ({"draft": "ngram"}, "got draft ngram: a lookup takes no time"),
        ({"draft": "recycling"}, "got draft recycling: a lookup takes no time"),
        ({"draft": None}, "got draft auto: a lookup takes no time"),
        ({"num_draft_tokens": 0}, "number of draft tokens; got 0; allowed: 1 or more"),
        ({"draft_from": "."}, "the draft model drafts alone: a folder to draft from; got ."),
        ({"draft_device": "NPU.7"}, "no such device here; got NPU.7"),
        ({"schedule": "sideways"}, "schedule; got sideways; allowed: synchronous, overlapped"),
    ],
)
def test_who_cannot_run_beside_is_refused_before_anything_is_compiled(
    tiny_ir: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("edgespec.machine.loader.open_model", lambda *_: pytest.fail("a model was opened"))
    with pytest.raises(EdgespecError, match=message):
        load(tiny_ir, **{"schedule": "overlapped", **options})


def test_a_head_is_refused_with_its_reason() -> None:
    from edgespec.load_options import LoadOptions

    with pytest.raises(SettingError, match="got draft block: a head reads what the target's last forward gave"):
        LoadOptions(schedule="overlapped").require_beside(has_model=False, is_head=True, drafter="block")
    LoadOptions().require_beside(has_model=False, is_head=True, drafter="block")


def test_one_core_and_rejection_are_refused(tiny_ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rejecting = SamplingParams(temperature=1.0, verification="rejection")
    with pytest.raises(SettingError, match="verification; got rejection; allowed: coupled"):
        load(tiny_ir, schedule="overlapped").stream(PROMPT, sampling=rejecting)
    monkeypatch.setattr(schedule_choice, "available_cores", lambda: 1)
    with pytest.raises(SettingError, match="needs two cores"):
        load(tiny_ir, schedule="overlapped")


def test_unasked_it_is_taken_only_where_it_measured_faster(tiny_ir: Path, tmp_path: Path) -> None:
    pair = load(tiny_ir)
    assert pair.schedule == "synchronous", "nothing was measured"
    assert pair.draft_model is not None
    for measured, expected in ((Schedules(1.0, 1.0), "synchronous"), (Schedules(1.0, 0.8), "overlapped")):
        schedule_choice.remember(pair.target, pair.draft_model, measured)
        assert load(tiny_ir).schedule == expected
        assert load(tiny_ir, schedule="synchronous").schedule == "synchronous", "the user's word wins"
    assert load(tiny_ir, num_draft_tokens=0).schedule == "synchronous", "nothing is drafted"
    assert load(tiny_ir, draft_from=texts(tmp_path)).schedule == "synchronous", "the folder would not be read"


def texts(folder: Path) -> Path:
    (folder / "texts").mkdir(exist_ok=True)
    (folder / "texts" / "one.txt").write_text("sea and sand and sun", encoding="utf-8")
    return folder / "texts"


def test_unasked_it_gives_way_to_what_it_cannot_do(tiny_ir: Path) -> None:
    pair = load(tiny_ir)
    assert pair.draft_model is not None
    schedule_choice.remember(pair.target, pair.draft_model, Schedules(1.0, 0.8))
    unasked = load(tiny_ir)
    rejecting = SamplingParams(temperature=1.0, verification="rejection", seed=1)
    options: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True}
    found = unasked.generate(PROMPT, sampling=rejecting, **options)
    assert (unasked.schedule, found.stats.schedule) == ("overlapped", "synchronous")
    assert found.stats.decoding and found.drafter == pair.drafter.name.split("+")[-1]
    assert unasked.generate(PROMPT, **options).stats.schedule == "overlapped", "other texts keep it"


def test_no_bench_takes_it_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures would mean something else on a machine where it was measured to be faster."""
    from edgespec.bench.simulation import compare_on_each_engine
    from edgespec.commands.options import load_pair

    seen: list[str] = []

    class Loaded(Exception):
        pass

    def loading(*_: Any, schedule: str, **__: Any) -> Any:
        seen.append(schedule)
        raise Loaded

    monkeypatch.setattr("edgespec.loading.load", loading)
    monkeypatch.setattr("edgespec.commands.fetching.fetch_first", lambda options: None)
    for call in (
        lambda: compare_on_each_engine("default"),
        lambda: load_pair({"model": "default", "schedule": None}),
        lambda: load_pair({"model": "default", "schedule": "overlapped"}),
    ):
        with pytest.raises(Loaded):
            call()
    assert seen == ["synchronous", "synchronous", "overlapped"]


def test_a_cache_inside_the_engine_has_its_own_threads_too(tiny_ir: Path) -> None:
    pair = load(tiny_ir, schedule="overlapped", kv="stateful")
    assert (threads_of(pair.target), threads_of(pair.draft_model)) == (1, 1)


@pytest.mark.parametrize("readable", [True, False])
def test_the_bench_compares_all_ways_and_keeps_the_result(
    tiny_ir: Path, readable: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counter = count(0.0, 2.0)  # two joules between two looks
    monkeypatch.setattr(energy, "read_joules", lambda: next(counter) if readable else None)
    beside, together = (load(tiny_ir, schedule=schedule) for schedule in ("overlapped", "synchronous"))
    prompts = [Prompt("code", "sea and sand", raw=True), Prompt("chat", "the sun", raw=True)]
    speeds = bench_overlapped(beside, together, prompts, new_tokens=8, pairs=1, lengths=(1,))
    assert set(speeds) == {"code", "chat"} and set(speeds["code"]) == {
        "plain, its own cores", "synchronous, own cores each",
        "plain, all cores", "synchronous, all cores", "auto, all cores",
    }  # fmt: skip
    *table, line = capsys.readouterr().out.splitlines()
    figures = json.loads(line)
    ways = {"plain", "own cores 1", "overlapped", "plain, all cores", "all cores 1", "auto"}
    assert all(any(row.strip(" │").startswith(way) for row in table) for way in ways)
    joules = figures["joules_per_token"]
    assert joules is None if not readable else set(joules) == ways and joules["plain"] == 2 / 8
    assert any("not readable" in row for row in table) != readable
    assert list((Path(os.environ["EDGESPEC_CACHE"]) / "measured").glob("schedules-*"))


def test_what_the_draft_takes_to_read_the_prompt_counts_by_both_schedules() -> None:
    """Before the first round, or in it: else the one that reads in a round looks slow."""
    before = Stats(rounds=[round_of(1.0), round_of(1.0)])
    before.prefill_s = 2.0
    within = Stats(rounds=[round_of(3.0), round_of(1.0)])
    assert _token_s(before) == _token_s(within) == 2.0


def test_the_round_in_which_the_draft_reads_the_prompt_is_not_simulated() -> None:
    within = Stats(rounds=[round_of(3.0), round_of(1.0)])
    assert len(_rounds([within])) == 2
    within.guessed = Guessed()
    assert [each.target_s for each in _rounds([within])] == [1.0]


def round_of(seconds: float) -> Round:
    return Round("m", 0, 0, 0, 1, 0.0, seconds, 0.0, width=1)


def test_run_tells_of_it(tiny_ir: Path) -> None:
    folder = str(tiny_ir.parent)
    common = ["run", "-m", folder, "--draft", folder, "--numerics", "fast", "--schedule", "overlapped", "-n", "16"]
    ran = CliRunner().invoke(cli, [*common, "--ignore-eos", "--raw", "--json", "--explain", "sea"])
    assert ran.exit_code == 0, ran.output
    figures = json.loads(ran.stdout)
    assert figures["schedule"] == "overlapped" and set(figures["guesses"]) == {"kept", "stale"}
    assert "While the target verified, the draft wrote" in ran.stderr and "overlapped" in ran.stderr
    refused = CliRunner().invoke(cli, [*common, "--draft", "ngram", "sea"])
    assert refused.exit_code == 2 or isinstance(refused.exception, SettingError)


def test_run_refuses_rejection_before_it_loads() -> None:
    rejecting = ["--temperature", "1", "--verification", "rejection"]
    ran = CliRunner().invoke(cli, ["run", "-m", "no/such-model", "--schedule", "overlapped", *rejecting, "sea"])
    assert isinstance(ran.exception, SettingError) and "verification; got rejection" in str(ran.exception)
