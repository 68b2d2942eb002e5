"""What a run loses against its own forwards at their best; and edgespec bench without a command."""

from __future__ import annotations

import gc
import importlib.util
import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from edgespec import loading
from edgespec.backends.fake import FakeModel, random_table
from edgespec.bench import plot as plots
from edgespec.bench import speed
from edgespec.bench.prompts import Prompt
from edgespec.cli import cli
from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.types import Round
from edgespec_bench import bandwidth, engine
from edgespec_bench.engine import lost_to_trials
from edgespec_bench.ideal import Call, Parts, again, causes, parts, watched
from edgespec_bench.states import bench_states


@pytest.fixture(scope="module")
def pair(tiny_ir: Path) -> Pipeline:
    """A tiny model that drafts for itself: how long anything takes is not looked at here."""
    return loading.load(tiny_ir.parent, draft=str(tiny_ir.parent))


@pytest.fixture
def loaded(pair: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """What the command line loads, and measures with one short prompt."""
    monkeypatch.setattr(loading, "load", lambda **options: pair)
    for module in (engine, speed):
        monkeypatch.setattr(module, "read", lambda per_category: [Prompt("code", "def add(a, b):", raw=True)])
    return pair


def call(model: str, width: int, engine_s: float, past: int = 0) -> Call:
    return Call(model, width, width, past, engine_s)


RUN = [
    call("target", 2, 9.0, 10),
    call("target", 2, 2.5, 11),
    call("target", 4, 8.0, 12),
    call("draft", 1, 3.0, 15),
    call("target", 4, 5.0, 15),
    call("draft", 1, 1.25, 16),
]


class Engine:
    """Forwards of n rows take n seconds; preparing another shape takes 5 more, the first after another model 0.5."""

    def __init__(self) -> None:
        self.before: dict[str, tuple[int, int]] = {}
        self.last = ""
        self.forwards = 0

    def loop(self, model: str) -> SimpleNamespace:
        found = SimpleNamespace(infer_s=0.0)

        def forward(tokens: list[int], past: int, wanted: int) -> None:
            self.forwards += 1
            shape = (len(tokens), wanted)
            changed = self.before.get(model) != shape
            found.infer_s += len(tokens) + 5.0 * changed + 0.5 * (self.last != model) + past / 1000
            self.before[model], self.last = shape, model

        found.forward = forward
        return found


def test_forwards_run_again_are_at_their_best_and_each_in_its_own_place() -> None:
    simulated = Engine()
    seconds, own_s = again(RUN, {name: simulated.loop(name) for name in ("target", "draft")})
    assert seconds == pytest.approx([2.010, 2.011, 4.012, 1.015, 4.015, 1.016])
    assert own_s > 0
    assert simulated.forwards == len(RUN) + 3  # a kind is prepared once


def test_what_is_lost_is_named_and_adds_up() -> None:
    assert causes(RUN) == ["change", "steady", "change", "change", "cold", "cold"]
    found = parts(40.0, RUN, [2.0, 2.0, 4.0, 1.0, 4.0, 1.0])
    assert found == Parts(run_s=40.0, ideal_s=14.0, host_s=11.25, width_switch_s=13.0, cache_refill_s=1.25, other_s=0.5)
    lost = found.host_s + found.width_switch_s + found.cache_refill_s + found.other_s
    assert lost == pytest.approx(found.run_s - found.ideal_s)
    both = Parts()
    both.add(found)
    both.add(found)
    assert both.run_s == 80.0 and both.shares == found.shares and both.shares["ideal"] == 14 / 40


def test_a_trial_costs_what_its_tokens_do_not_bring_in() -> None:
    def took(seconds: float, committed: int) -> Round:
        return Round("x", 1, 1, 0, committed, draft_s=seconds / 2, target_s=seconds / 4, host_s=seconds / 4)

    usual, trial = (took(2.0, 2), False), (took(4.0, 1), True)
    assert lost_to_trials([usual, usual, trial]) == pytest.approx(3.0 / 8.0)
    assert lost_to_trials([usual, usual]) == lost_to_trials([trial]) == 0.0


def test_every_forward_of_a_run_is_seen(pair: Pipeline) -> None:
    assert pair.draft_model is not None
    models = {"target": pair.target, "draft": pair.draft_model}
    with watched(models, lambda: True) as calls:
        stats = pair.generate("Hello", max_new_tokens=12, num_draft_tokens=2, ignore_eos=True).stats
    assert {c.model for c in calls} == {"target", "draft"}
    targets = [c for c in calls if c.model == "target"]
    assert len(targets) == len(stats.rounds) and all(c.trial for c in calls)
    assert targets[0].past + stats.rounds[0].read == stats.prompt_tokens - 1
    assert 0 < sum(c.engine_s for c in calls) < sum(r.draft_s + r.target_s + r.host_s for r in stats.rounds)
    seen = len(calls)
    pair.generate("Hello", max_new_tokens=2, ignore_eos=True)
    assert len(calls) == seen
    with watched(models, lambda: False) as calls:
        pair.generate("Hello", max_new_tokens=2, num_draft_tokens=0, ignore_eos=True)
    least = pair.target.capabilities.min_width
    assert [(c.model, c.width, c.wanted, c.trial) for c in calls] == [("target", least, least, False)] * 2  # padded


def test_bench_engine_prints_times_and_losses(loaded: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CONTEXTS", (64, 100_000))
    arguments = ["--pairs", "1", "--per-category", "1", "--new-tokens", "6"]
    result = CliRunner().invoke(cli, ["bench", "engine", *arguments])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert list(figures["forwards"]) == ["64"]
    at_64 = figures["forwards"]["64"]
    assert at_64[str(loaded.target.capabilities.min_width)]["ratio"] == 1.0
    assert {"32", "draft 1"} < at_64.keys() and all(found["ratio"] > 0 for found in at_64.values())
    rounds = figures["rounds"]
    assert set(rounds["lost"]) == {"host", "width_switch", "cache_refill", "other"} and 0 < rounds["lost"]["host"] < 1
    assert rounds["measured_over_ideal"] > 0 and rounds["ideal_speed_up"] > 0
    assert figures["crop_us"] and all(us >= 0 for us in figures["crop_us"].values())
    monkeypatch.setattr(loaded.target.cache, "capacity", 90)
    with pytest.raises(SettingError, match="context too short"):
        CliRunner().invoke(cli, ["bench", "engine"], catch_exceptions=False)


@pytest.mark.parametrize("bench", ["loop", "engine"])
@pytest.mark.parametrize("kind", ["genai", "optimum"])
def test_a_ready_model_has_no_bare_loop(bench: str, kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(f"tiny_{kind}").parent
    with pytest.raises(SettingError, match="no bare loop for a graph that another tool wrote; got a ready ONNX model"):
        CliRunner().invoke(cli, ["bench", bench, "-m", str(folder), "--draft", "none"], catch_exceptions=False)


def test_bench_states_compares_each_set_of_layers_with_none(tiny_fast_ir: Path) -> None:
    arguments = ["bench", "states", "-m", str(tiny_fast_ir.parent), "--backend", "onnxruntime", "--pairs", "2"]
    result = CliRunner().invoke(cli, [*arguments, "--layers", "2", "--layers", "0,1"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert set(found["over_none"]) == {"2", "0,1", "control"} and found["bench"].endswith("onnxruntime")
    assert all(ratio > 0 for widths in found["over_none"].values() for ratio in widths.values())
    with pytest.raises(SettingError, match="layers; got 2,x; allowed: numbers"):
        CliRunner().invoke(cli, [*arguments, "--layers", "2,x"], catch_exceptions=False)


def test_bench_states_holds_two_models_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    alive: weakref.WeakSet[FakeModel] = weakref.WeakSet()
    counts: list[int] = []

    def load(layers: tuple[int, ...]) -> FakeModel:
        gc.collect()
        alive.add(model := FakeModel(random_table(8, seed=0), 8, layers=layers))
        counts.append(len(alive))
        return model

    bench_states(load, [(1,), (2,), (1, 2)], pairs=1)
    assert counts == [1, 2, 2, 2, 2]
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["over_none"]
    assert list(figures) == ["1", "2", "1,2", "control"]


def test_what_a_forward_waits_for() -> None:
    """10 ms to read, and 1 or 5 a row; and an engine that takes 25 to do as much."""
    near = bandwidth.forwards([0.011, 0.012, 0.014, 0.018, 0.026], 0.01)
    assert [one.bound for one in near] == ["memory"] * 4 + ["arithmetic"]
    dear_rows = bandwidth.forwards([0.015, 0.02, 0.03, 0.05, 0.09], 0.01)
    assert [one.bound for one in dear_rows] == ["memory", *["arithmetic"] * 4]
    slow = bandwidth.forwards([0.026, 0.027, 0.029, 0.033, 0.041], 0.01)
    assert [one.bound for one in slow] == ["the engine"] * 5


def test_bench_bandwidth_prints_a_row_for_each_width(loaded: Pipeline) -> None:
    result = CliRunner().invoke(cli, ["bench", "engine", "--bandwidth", "--pairs", "1"])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("of a plain read") == len(bandwidth.WIDTHS)
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["plain_read"] > 0 and all(found["ms"] > 0 for found in figures["forwards"].values())


def test_bench_alone_is_a_quick_comparison_with_a_plot(loaded: Pipeline, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["bench", "--plot", str(tmp_path / "speed.png")])
    assert result.exit_code == 0, result.output
    assert "edgespec: plain and speculative decoding of 1 prompt, 2 times each\n" in result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["code"]["speed_up"] > 0 and figures["code"]["plain_tok_per_s"] > 0
    assert figures["same_tokens"] == "1 of 1"
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_made_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, message in (("speed.txt", "ends in .png"), ("missing/speed.png", "no such folder")):
        with pytest.raises(SettingError, match=message):
            CliRunner().invoke(cli, ["bench", "--plot", str(tmp_path / name)], catch_exceptions=False)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(plots, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    with pytest.raises(SettingError, match=r"needs matplotlib.*pip install matplotlib"):
        CliRunner().invoke(cli, ["bench", "--plot", str(tmp_path / "speed.png")], catch_exceptions=False)


def test_bench_lists_its_commands_and_wants_their_options_behind_them() -> None:
    shown = CliRunner().invoke(cli, ["bench", "--help"]).output
    for name in ("engine", "inflate", "speed", "exactness"):
        assert f"\n  {name} " in shown
    with pytest.raises(SettingError, match="--device is before speed"):
        CliRunner().invoke(cli, ["bench", "--device", "CPU", "speed"], catch_exceptions=False)
