"""The first use of a model on a machine: what is tried, what is shown, and what an interrupted search keeps."""

from __future__ import annotations

import io
import random
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgespec
from edgespec.adaptive import calibration
from edgespec.backends.engine_model import PaddedModel
from edgespec.backends.exact_widths import ExactWidths, Tried, find_exact_widths
from edgespec.backends.fake import FakeModel, VirtualClock, random_table
from edgespec.backends.open import Opening, open_model
from edgespec.errors import BackendError
from edgespec.machine import measure_forwards, measurement_store
from edgespec.machine.progress_line import ProgressLine
from edgespec.types import Backend, Step

TABLE = random_table(50, seed=1)


class Odd(FakeModel):
    """Some widths differ, from ``wide`` on too; a forward with nothing before it too where ``first`` says so."""

    def __init__(self, differs: set[int], wide: int = 10**9, first: int = 10**9, **options: Any) -> None:
        super().__init__(TABLE, 50, max_width=256, **options)
        self.differs, self.wide, self.first = differs, wide, first
        self.min_width, self.max_width, self.width_step, self.fingerprint = 1, 256, 1, "odd"

    def forward(self, tokens, tree=None, **options):  # type: ignore[no-untyped-def]
        begins = self.cache.length == 0
        step = super().forward(tokens, tree, **options)
        n = len(tokens)
        other = n in self.differs or n >= self.wide or (begins and n >= self.first)
        return Step(step.logits + np.float32(1e-5 * n)) if other else step


def test_a_width_that_cannot_change_the_result_is_not_tried() -> None:
    model = Odd(set(range(1, 20, 2)))
    assert find_exact_widths(model) == ExactWidths(2, 256, 2)
    assert [width for width in model.widths if width % 2] == [19], "one odd width says it of all"


def test_a_widest_width_of_other_kernels_is_left_after_one_trial() -> None:
    model = Odd(set(), wide=88)
    assert find_exact_widths(model) == ExactWidths(1, 64)
    assert model.widths[:6] == [256, 256, 20, 128, 128, 20] and 112 not in model.widths


def test_wide_forwards_with_nothing_before_them_have_to_agree_with_those_behind_rows() -> None:
    """A prompt's first chunk and its second one are of one text."""
    assert find_exact_widths(Odd(set(), first=65)) == ExactWidths(1, 64)


def test_every_forward_that_a_text_may_need_was_tried() -> None:
    model = Odd(set())
    assert find_exact_widths(model) == ExactWidths(1, 256)
    assert {*range(1, 21), 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256} <= set(model.widths)
    assert model.cache.length == 0


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESPEC_CACHE", str(tmp_path))
    find, work = find_exact_widths, []

    def interrupted(model: FakeModel, tried: Tried | None, keep: Any) -> ExactWidths:
        def kept(tried: Tried, share: float) -> None:
            keep(tried, share)
            work.append(len(tried))
            if len(work) == 30:
                raise KeyboardInterrupt

        return find(model, tried, kept)

    monkeypatch.setattr(measure_forwards, "find_exact_widths", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_forwards.exact_widths(Odd({1}), lambda what, share=None: None)  # type: ignore[arg-type]
    [trials] = tmp_path.glob("measured/*.tried")
    assert len(measurement_store.read(trials, Tried) or {}) == 30
    again = Odd({1})
    found = measure_forwards.exact_widths(again, lambda what, share=None: None)  # type: ignore[arg-type]
    assert found == ExactWidths(2, 256) == find_exact_widths(Odd({1}))
    assert work[30] == 31, "the first new trial is the next one"
    assert not list(tmp_path.glob("measured/*.tried"))
    assert len(list(tmp_path.glob("measured/*.json"))) == 1


def test_trials_of_an_earlier_search_are_no_share_of_this_one() -> None:
    """They take no time now, so they would make it look fast."""
    found: list[tuple[Tried, float]] = []
    find_exact_widths(Odd(set()), keep=lambda tried, share: found.append((dict(tried), share)))
    half, done = found[len(found) // 2]
    shares: list[float] = []
    find_exact_widths(Odd(set()), dict(half), lambda tried, share: shares.append(share))
    assert len(shares) == len(found) - len(half) and shares[0] < 0.5 < done and shares[-1] == 1.0


def test_where_no_widths_agree_nothing_is_promised() -> None:
    with pytest.raises(BackendError, match="Use --numerics fast"):
        find_exact_widths(Odd(set(range(1, 21))))


def test_a_quiet_machine_is_timed_twice_and_a_noisy_one_as_often_as_it_needs() -> None:
    clock = VirtualClock()
    quiet = FakeModel(TABLE, 50, forward_s=lambda width: 1.0 + width, clock=clock, capacity=calibration.ROWS_NEEDED)
    calibration.measure(quiet, clock)
    draw = random.Random(0)

    def noisy_s(width: int) -> float:
        return (1.0 + width) * draw.uniform(1.0, 2.0)

    noisy = FakeModel(TABLE, 50, forward_s=noisy_s, clock=clock, capacity=calibration.ROWS_NEEDED)
    calibration.measure(noisy, clock)
    assert len(quiet.widths) < 0.8 * len(noisy.widths)


def test_a_disturbed_forward_makes_no_width_dearer_at_a_glance() -> None:
    """Nor those that are wider."""
    clock, timed = VirtualClock(), list[int]()

    def seconds(width: int) -> float:
        timed.append(width)
        return 1.0 + width / 10 + 9.0 * (len(timed) == 5)  # three set up, one changes the width, and this one counts

    model = FakeModel(TABLE, 50, forward_s=seconds, clock=clock)
    model.prefill([0] * 4)
    timed.clear()
    found = calibration.glance(model, clock, (1, 2, 4))
    assert found.at_short_s == pytest.approx((1.1, 1.2, 1.4))
    beside = calibration.lengthened(found, [1.9, 1.6, 2.5])
    assert beside.at_short_s == beside.at_long_s == pytest.approx((1.6, 1.7, 1.9))
    assert calibration.lengthened(found, [1.0]) == found


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_a_step_is_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("COLUMNS", "40")
    say = ProgressLine(True)
    for share in (0.0, 0.5, 1.0):
        say("measuring which widths are exact on openvino (one-time)", share)
    say("done")
    first, second, rest = shown.getvalue().split("\n")
    assert [line[-4:] for line in first.split("\r")[1:]] == ["  0%", " 50%", "100%"]
    assert all(len(line) < 40 for line in first.split("\r")), "a wrapped line could not be written over"
    assert second == "edgespec: done" and rest == ""


def test_a_slow_step_says_how_long_it_will_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 10.0, 20.0, 30.0, 40.0])
    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    say = ProgressLine(True, lambda: next(times))
    for share in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
        say("measuring", share)
    lines = [line.removeprefix("edgespec: measuring ") for line in shown.getvalue().rstrip("\n").split("\r")[1:]]
    assert [line.strip() for line in lines] == [
        *("0%", "10%", "25%, about 30 s left", "50%, about 20 s left", "90%, about 3 s left", "100%")
    ]
    assert [len(line) for line in lines] == [4, 4, 21, 21, 21, 20], "what was longer is written over"


def test_a_pipe_gets_a_second_line_for_a_slow_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 1.0, 10.0, 20.0, 40.0, 0.0, 8.0, 9.0])
    say = ProgressLine(True, lambda: next(times))
    for share in (0.0, 0.1, 0.25, 0.5, 1.0):
        say("measuring", share)
    for share in (0.0, 0.8, 1.0):
        say("short", share)
    lines = ["edgespec: measuring", "edgespec: measuring: about 30 s left", "edgespec: short"]
    assert capsys.readouterr().err.splitlines() == lines


def test_what_holds_for_target_and_draft_is_said_once(
    tiny_ir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step is announced each time."""
    number = count()

    def opened(name: Backend, opening: Opening) -> PaddedModel:
        say: Any = opening.say
        say("the context on NPU is 4096 tokens")
        say(f"compiling {next(number)}", 0.0)
        return open_model(name, opening)

    monkeypatch.setattr("edgespec.machine.loader.open_model", opened)
    folder = tiny_ir.parent
    edgespec.load(folder, draft=str(folder), backend="openvino", numerics="fast", num_draft_tokens=1, progress=True)
    said = capsys.readouterr().err
    assert said.count("the context on NPU") == 1 and said.count("compiling") == 2


def test_a_step_that_failed_and_begins_again_has_a_pace_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 10.0, 1000.0, 1020.0])
    say = ProgressLine(True, lambda: next(times))
    for share in (0.0, 0.5, 0.0, 0.5):  # it ends at 0.5, the first time
        say("measuring", share)
    told = [f"edgespec: measuring{left}" for left in ("", ": about 10 s left", "", ": about 20 s left")]
    assert capsys.readouterr().err.splitlines() == told


def test_a_pipe_gets_one_line_for_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    say = ProgressLine(True)
    for share in (0.0, 0.5, 1.0):
        say("measuring (one-time)", share)
    ProgressLine(False)("nobody asked", 0.0)
    assert capsys.readouterr().err == "edgespec: measuring (one-time)\n"
