"""The simulator: events by hand, figures with sources, published cases, and its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from click.testing import CliRunner, Result

from edgespec.bench.simulation import Compared
from edgespec.cli import cli
from edgespec.errors import SettingError
from edgespec.simulate.cases import chance_of, check_cases
from edgespec.simulate.figures import FILE, Device, Figure, Figures, ModelSize, figures
from edgespec.simulate.forwards import Constant, Forward, Measured, Roofline
from edgespec.simulate.plans import Simulation, best_of_each_place, engine, least_energy
from edgespec.simulate.schedules import Guess, Placed, Run, simulate
from edgespec.simulate.timeline import Timeline

ROOT = Path(__file__).resolve().parents[1]


def run(schedule: str = "synchronous", *, k: int, acceptance: float, tokens: int, **other: float) -> Run:
    """A target of 3 seconds, a draft of 1, each on a bus of its own."""
    target, draft = Placed("target", Constant(3.0)), Placed("draft", Constant(1.0), other.pop("start_s", 0.0))
    options = {"context": 0, "bus_gb_per_s": 1.0, "waits_for": int(other.pop("waits_for", 0))}
    return simulate(schedule, target, draft, k=k, acceptance=acceptance, tokens=tokens, **options, **other)  # type: ignore[arg-type]


# --- The clock


def test_two_jobs_that_share_a_bus() -> None:
    """Each wants 80 of 100 GB a second and gets 50. The first has a call of 2 s, in which it reads nothing.

    0 to 2: the second one alone, 2 of its 8 s done. From 2 on both at 50 / 80 of their pace. The second one's 6 s take
    9.6, to 11.6. By then 6 of the first one's 10 s are done; the other 4 take 4.
    """
    timeline = Timeline(100.0)
    first = timeline.start("GPU", Forward(12.0, 2.0, 80.0))
    second = timeline.start("CPU", Forward(8.0, 0.0, 80.0))
    assert timeline.wait(second) == pytest.approx(11.6)
    assert timeline.wait(first) == pytest.approx(15.6)
    assert timeline.busy_s("CPU") == pytest.approx(11.6)


def test_a_job_alone_takes_its_own_time_and_none_waits_for_a_bus_that_has_enough() -> None:
    timeline = Timeline(100.0)
    slow, fast = timeline.start("A", Forward(5.0, 1.0, 60.0)), timeline.start("B", Forward(3.0, 0.0, 40.0))
    assert (timeline.wait(fast), timeline.wait(slow)) == (3.0, 5.0)
    assert timeline.wait(timeline.start("A", Forward(0.0))) == 5.0


def test_a_device_does_one_job_at_a_time() -> None:
    timeline = Timeline(1.0)
    timeline.start("A", Forward(1.0))
    with pytest.raises(AssertionError, match="busy"):
        timeline.start("A", Forward(1.0))


# --- The schedules


def test_synchronous_rounds_by_hand() -> None:
    """A round of k 2: two steps of 1 s, a forward of 3 s. All right: 3 tokens; none right: 1 token."""
    right = run(k=2, acceptance=1.0, tokens=6)
    assert (right.tokens, right.forwards, right.timeline.now_s) == (6, 2, 10.0)
    wrong = run(k=2, acceptance=0.0, tokens=3)
    assert (wrong.tokens, wrong.accepted, wrong.timeline.now_s) == (3, 0, 15.0)
    assert run(k=2, acceptance=0.0, tokens=1, host_s=0.5, start_s=0.25).timeline.now_s == 5.75
    assert run(k=0, acceptance=1.0, tokens=4).timeline.now_s == 12.0


def test_overlapped_rounds_by_hand() -> None:
    """The first forward verifies nothing, and 3 tokens are guessed meanwhile. The first of them is what the target
    chose, so 2 are left: each later forward commits these and its own token, in 3 s.
    """
    right = run("overlapped", k=3, acceptance=1.0, tokens=10)
    assert [job.label for job in right.timeline.jobs if job.device == "target"] == [
        "verify 0", "verify 2", "verify 2", "verify 2",
    ]  # fmt: skip
    assert (right.tokens, right.timeline.now_s) == (10, 12.0)
    wrong = run("overlapped", k=3, acceptance=0.0, tokens=4)
    assert (wrong.tokens, wrong.timeline.now_s, wrong.proposed) == (4, 12.0, 0)
    waiting = run("overlapped", k=3, acceptance=1.0, tokens=3, waits_for=2)
    assert (waiting.tokens, waiting.timeline.now_s) == (3, 5.0)


def test_a_forward_waits_for_the_step_that_runs_when_it_is_done() -> None:
    target, draft = Placed("target", Constant(3.0)), Placed("draft", Constant(2.0))
    found = simulate(
        "overlapped", target, draft, k=3, acceptance=0.0, context=0, tokens=2, bus_gb_per_s=1.0
    )  # fmt: skip
    assert found.timeline.now_s == 8.0  # two rounds of two steps


def test_a_draft_begins_no_step_that_would_end_far_behind_the_forward() -> None:
    """A forward of 3 s, steps of 2 s: the second one would end a second behind it. How long a forward takes is known
    from the second one on."""
    target, draft = Placed("target", Constant(3.0)), Placed("draft", Constant(2.0))
    found = simulate(
        "overlapped", target, draft, k=3, acceptance=0.0, context=0, tokens=2, bus_gb_per_s=1.0, least_share=0.6
    )
    assert [job.label for job in found.timeline.jobs] == ["verify 0", "draft", "draft", "verify 0", "draft"]
    assert found.timeline.now_s == 7.0


@pytest.mark.parametrize(("least_chance", "most"), [(0.0, "verify 8"), (0.3, "verify 2")])
def test_a_draft_stops_where_its_guesses_are_unlikely(least_chance: float, most: str) -> None:
    """0.6 * 0.6 is above 0.3, and another 0.6 is not: of three guesses one is the target's own token."""
    target, draft = Placed("target", Constant(20.0)), Placed("draft", Constant(1.0))
    jobs = simulate(
        "overlapped", target, draft,
        k=8, acceptance=0.6, context=0, tokens=200, bus_gb_per_s=1.0, least_chance=least_chance,
    ).timeline.jobs  # fmt: skip
    assert max(job.label for job in jobs) == most


def test_guesses_of_a_text_by_hand() -> None:
    """Steps of 1 s beside forwards of 3 s, on a text whose third guess is wrong and unlikely.

    Beside the first forward places 0 to 2 are guessed, and it commits place 0. The second one verifies a right and a
    wrong guess, and commits places 1 and 2. No step is begun beside it, since 0.9 * 0.2 is below 0.3.
    """
    guesses = [Guess(True, 0.9), Guess(True, 0.9), Guess(False, 0.2), Guess(True, 1.0), Guess(True, 1.0)]
    target, draft = Placed("target", Constant(3.0)), Placed("draft", Constant(1.0))
    found = simulate(
        "overlapped", target, draft,
        k=4, guesses=guesses, context=0, tokens=3, bus_gb_per_s=1.0, least_chance=0.3,
    )  # fmt: skip
    assert [job.label for job in found.timeline.jobs] == ["verify 0", "draft", "draft", "draft", "verify 2"]
    assert (found.tokens, found.accepted, found.proposed, found.timeline.now_s) == (3, 1, 2, 6.0)
    in_turns = simulate("synchronous", target, draft, k=3, guesses=guesses, context=0, tokens=3, bus_gb_per_s=1.0)
    assert (in_turns.tokens, in_turns.accepted) == (3, 2)


def test_forwards_run_at_the_width_that_the_policy_takes() -> None:
    """Three rows, and more if there are more tokens. A change of width takes half a second."""

    class AtLeastThree:
        ran: ClassVar[list[int]] = []

        def begin(self) -> None:
            self.ran.clear()

        def width(self, tokens: int, context_length: int) -> int:
            return max(3, tokens)

        def update(self, tokens: int, context_length: int, width: int, seconds: float | None) -> None:
            self.ran.append(width)

    def forward(width: int, context: int) -> Forward:
        return Forward(3.0 if width <= 3 else 4.0)

    found = simulate(
        "overlapped", Placed("target", forward), Placed("draft", Constant(0.8)),
        k=3, acceptance=1.0, context=0, tokens=8, bus_gb_per_s=1.0, widths=AtLeastThree(), switch_s=0.5,
    )  # fmt: skip
    ran = [job for job in found.timeline.jobs if job.device == "target"]
    assert [job.label for job in ran] == ["verify 0", "verify 3", "verify 2"]
    assert AtLeastThree.ran == [3, 4, 3]
    assert [job.forward.seconds for job in ran] == [3.0, 4.5, 3.5]


def test_a_forward_behind_a_draft_may_take_longer_than_one_behind_its_own() -> None:
    target, draft = Placed("target", Constant(3.0), 0.25), Placed("draft", Constant(1.0))
    found = simulate("synchronous", target, draft, k=2, acceptance=0.0, context=0, tokens=2, bus_gb_per_s=1.0)
    assert found.timeline.now_s == 2 * 5.25


def test_the_same_seed_is_the_same_text() -> None:
    one, same = (run(k=3, acceptance=0.6, tokens=200, seed=7) for _ in range(2))
    assert (one.accepted, one.timeline.now_s) == (same.accepted, same.timeline.now_s)
    assert one.accepted != run(k=3, acceptance=0.6, tokens=200, seed=8).accepted


def test_tokens_a_forward_are_those_of_the_formula() -> None:
    found = run(k=3, acceptance=0.6, tokens=20_000)
    assert found.tokens / found.forwards == pytest.approx((1 - 0.6**4) / (1 - 0.6), rel=0.02)
    assert chance_of(found.accepted / found.proposed, 3) == pytest.approx(0.6, abs=0.01)


# --- The cost of a forward


def of(value: float) -> Figure:
    return Figure(value=value, basis="assumed")


MODEL = ModelSize(params_b=10, weight_gb=of(5), kv_kb=1000)


def device(**changed: float) -> Device:
    values = {"gb_per_s": 100, "tops": 10, "call_ms": 2, "loop_ms": 7, "row_share": 0.1, "watts": 1} | changed
    return Device(**{name: of(value) for name, value in values.items()})


def test_a_forward_reads_weights_and_context_and_pays_for_rows_calls_and_arithmetic() -> None:
    alone, in_loop = (Roofline(device(), MODEL, in_loop=loop) for loop in (False, True))
    about: Any = pytest.approx
    assert alone(1, 0) == Forward(about(0.052), 0.002, about(100.0))
    assert alone(1, 1000).seconds == pytest.approx(0.062)  # a GB more
    assert alone(3, 0) == Forward(about(0.062), 0.002, about(5 / 0.06))  # reads slower
    assert in_loop(1, 0).seconds == pytest.approx(0.059)
    slow = Roofline(device(tops=1), MODEL, in_loop=False)
    assert slow(6, 0).seconds == pytest.approx(0.002 + 2 * 10 * 6 / (1e3 * 0.3))  # arithmetic, longer than 75 ms


def test_measured_forwards_stand_in_for_the_roofline() -> None:
    known = figures()
    found = engine(known, "epyc-bf16", "OpenVINO", "qwen2.5-coder-1.5b", in_loop=False)
    assert [round(1e3 * found(width, 0).seconds, 6) for width in (1, 2, 3, 4)] == [45, 50, 56, 62]
    times = next(times for times in known.forwards if times.device == "OpenVINO")
    assert found(1, 0) == Measured(times, device(), known.models["qwen2.5-coder-1.5b"])(1, 0)


# --- The figures


def every_figure(known: Figures) -> list[Figure]:
    chips = [getattr(chip, name) for chip in known.chips.values() for name in ("bus_gb_per_s", "bus_share")]
    devices = [
        getattr(each, name)
        for chip in known.chips.values()
        for each in chip.devices.values()
        for name in Device.__struct_fields__
    ]
    models = [model.weight_gb for model in known.models.values()]
    return [*chips, *devices, *models, *(pair.acceptance for pair in known.pairs.values())]


def test_every_figure_says_how_it_is_known() -> None:
    known = figures()
    for figure in every_figure(known):
        assert figure.basis == "assumed" or figure.source, figure
        assert figure.basis != "derived" or figure.note, figure
    named = [figure.source for figure in every_figure(known) if figure.source]
    sourced: list[Any] = [*known.forwards, *known.cases, *known.unsimulated]
    named += [each.source for each in sourced]
    assert set(named) == set(known.sources)
    for source in known.sources.values():
        page = source.split(",")[0]
        assert source.startswith(("https://", "http://")) or (ROOT / page).is_file(), source


def test_every_name_in_the_figures_is_known() -> None:
    known = figures()
    for pair in known.pairs.values():
        assert {pair.target, pair.draft} <= known.models.keys()
    for times in known.forwards:
        assert times.device in known.chips[times.chip].devices and times.model in known.models
    for case in known.cases:
        assert case.target_ms or {case.target, case.draft} - {None} <= known.models.keys()


def test_a_wrong_figure_is_an_error() -> None:
    text = FILE.read_text(encoding="utf-8")
    with pytest.raises(msgspec.ValidationError, match="guessed"):
        msgspec.toml.decode(text.replace('0.8, basis = "assumed"', '0.8, basis = "guessed"', 1), type=Figures)


# --- Published cases


def test_published_cases_hold_or_their_miss_is_named() -> None:
    checked = check_cases(figures())
    assert sum(not one.case.fitted and one.holds for one in checked) >= 5
    for one in checked:
        assert one.holds == (one.case.miss == ""), (one.case.name, one.off)


# --- Plans


def plans_of(chip: str, pair: str, acceptance: float) -> Simulation:
    return Simulation(figures(), chip, pair, acceptance, 512)


def test_an_npu_that_drafts_token_by_token_is_never_taken() -> None:
    best = best_of_each_place(plans_of("lunar-lake", "qwen3-14b", 0.61).plans([1, 3]))
    assert best[0].draft != "NPU" and best[0].target == "GPU" and best[0].speed_up > 1.2
    by_npu = max(plan.speed_up for plan in best if plan.draft == "NPU" and plan.schedule == "synchronous")
    assert by_npu < 1


def test_a_useless_draft_leaves_plain_decoding() -> None:
    assert best_of_each_place(plans_of("panther-lake", "qwen2.5-coder-1.5b", 0.0).plans([1, 4]))[0].draft is None


def test_engines_on_the_same_cores_are_never_overlapped() -> None:
    assert {plan.schedule for plan in plans_of("epyc-bf16", "qwen2.5-coder-1.5b", 0.8).plans([2])} == {"synchronous"}


def test_battery_takes_the_least_energy_among_plans_that_are_no_slower_than_plain() -> None:
    plans = plans_of("lunar-lake", "qwen3-8b", 0.6).plans([1, 3])
    best = least_energy(plans)
    plain = next(plan for plan in plans if plan.target == best.target and plan.draft is None)
    assert best.tok_per_s >= plain.tok_per_s and best.joules <= plain.joules


# --- The command


def simulate_command(*args: str) -> Result:
    return CliRunner().invoke(cli, ["simulate", *args])


def test_the_command_answers_with_a_plan() -> None:
    result = simulate_command("--chip", "Lunar-Lake", "--acceptance", "0.7")
    assert result.exit_code == 0, result.output
    assert "Take: target on GPU" in result.stdout and "not measured here" in result.stdout
    report = json.loads(simulate_command("--chip", "lunar-lake", "--json").stdout)
    assert report["best"] == max(report["plans"], key=lambda plan: plan["tok_per_s"])


def test_without_a_chip_all_are_listed() -> None:
    assert "panther-lake" in simulate_command().stdout
    assert set(json.loads(simulate_command("--json").stdout)["chips"]) == set(figures().chips)


@pytest.mark.parametrize(
    "args, message",
    [
        (["--chip", "moon-lake"], "no such chip; got moon-lake; allowed: meteor-lake"),
        (["--chip", "lunar-lake", "--pair", "gpt"], "no such pair; got gpt"),
        (["--pair", "gpt"], "no such pair; got gpt"),
        (["--chip", "lunar-lake", "--acceptance", "1.5"], "acceptance; got 1.5; allowed: 0 to 1"),
        (["--chip", "lunar-lake", "--acceptance", "nan"], "acceptance; got nan"),
        (["--chip", "lunar-lake", "--context", "-1"], "context; got -1"),
        (["--chip", "lunar-lake", "--plot", "speed.txt"], "a file that ends in"),
        (["--plot", "speed.svg"], "a picture is of one chip"),
        (["--check", "--chip", "lunar-lake"], "--check takes all published cases"),
    ],
)
def test_bad_input_is_one_line(args: list[str], message: str) -> None:
    result = simulate_command(*args)
    assert isinstance(result.exception, SettingError) and message in str(result.exception)


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / "speed.svg", tmp_path / "rounds.svg"]
    pictures = ["--plot", str(files[0]), "--timeline", str(files[1])]
    result = simulate_command("--chip", "avx2-vnni", *pictures)
    assert result.exit_code == 0, result.output
    assert all("<svg" in file.read_text(encoding="utf-8") for file in files)


def test_the_check_prints_both_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of this machine are given; tests/test_bench.py makes some."""
    plain = Compared("openvino", "synchronous", "none", 0, 0.0, 40.0, 50.0)
    runs = [plain, *(Compared("openvino", "overlapped", "model", 2, 0.5, fast, 84.0, plain) for fast in (64.0, 80.0))]
    monkeypatch.setattr("edgespec.bench.simulation.compare_on_each_engine", lambda ref: runs)
    shown = simulate_command("--check").stdout
    assert "Published cases, within 15%" in shown and "not simulated: no such chip" in shown
    assert "missed: the call of a channel-wise model" in shown and "(fitted to it)" in shown
    assert "Runs of default on this machine, within 10%" in shown and "+5%" in shown and "the pace" in shown
    report = json.loads(simulate_command("--check", "--json").stdout)
    assert [run["holds"] for run in report["here"]] == [None, True, False] and len(report["published"]) > 8
