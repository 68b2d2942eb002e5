"""What a target and a draft model take, alone and beside each other: measured of a pair on a clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgespec.bench import beside, simulation
from edgespec.decode.overlapped import Guesses
from edgespec.simulate.schedules import Guess, simulate
from edgespec.types import Draft

FORWARD_S = {1: 10.0, 2: 12.0, 6: 20.0}
"""of the target by width, behind another of its own"""
SWITCH_S, REFILL_S, START_S, END_S = 3.0, 0.5, 0.25, 0.125
STEP_S, COLD_S, SECOND_TOKEN_S = 2.0, 0.5, 0.25
"""of a draft step; of one behind the target; of one that reads two tokens"""
TARGET_SLOWING, DRAFT_SLOWING = 1.25, 1.5
TEXT = [1, 2, 3, 4]


class Pair:
    """A target and a draft model, which slow each other while both run. left_s: of a forward that runs."""

    def __init__(self) -> None:
        self.now_s = self.left_s = 0.0
        self.last_width: int | None = None
        self.ran = ""
        self.unread = 1
        self.cache = self

    # The target

    def prefill(self, tokens: Sequence[int]) -> None:
        assert list(tokens) == TEXT[:-1]

    def crop(self, length: int) -> None:
        assert length == len(TEXT) - 1 and not self.left_s

    def start(self, tokens: Sequence[int]) -> None:
        width = len(tokens)
        switch_s = SWITCH_S if self.last_width not in (None, width) else 0.0
        refill_s = REFILL_S if self.ran == "draft" else 0.0
        self.now_s += START_S
        self.left_s = FORWARD_S[width] + switch_s + refill_s - START_S - END_S
        self.last_width, self.ran = width, "target"

    def ready(self) -> bool:
        return self.left_s <= 0

    def wait(self) -> None:
        self.sleep(self.left_s)
        self.now_s += END_S

    def forward(self, tokens: Sequence[int]) -> None:
        self.start(tokens)
        self.wait()

    # The draft model

    def begin(self, text: Sequence[int], params: object, *, read: bool = True) -> None:
        if read:
            self.unread = 1 + len(TEXT) - len(text)

    def propose_while(self, text: Sequence[int], k: int, go_on: Callable[[Sequence[float]], bool]) -> None:
        scores: list[float] = []
        while len(scores) < k:
            cold_s = COLD_S if self.ran == "target" and not self.left_s else 0.0
            self._step(STEP_S + cold_s + SECOND_TOKEN_S * (self.unread - 1))
            self.unread, self.ran = 1, "draft"
            scores.append(1.0)
            if not go_on(scores):
                return

    def _step(self, alone_s: float) -> None:
        both_s = min(alone_s * DRAFT_SLOWING, self.left_s * TARGET_SLOWING)
        self.left_s -= both_s / TARGET_SLOWING
        self.now_s += both_s + alone_s - both_s / DRAFT_SLOWING

    # The clock

    def sleep(self, seconds: float) -> None:
        self.now_s += min(seconds, self.left_s)
        self.left_s -= min(seconds, self.left_s)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Pair:
    made = Pair()
    monkeypatch.setattr(beside, "perf_counter", lambda: made.now_s)
    monkeypatch.setattr(beside, "sleep", made.sleep)
    monkeypatch.setattr(beside, "_LOOK_S", 0.5)
    return made


def measured(pair: Pair, *, at_once: bool) -> beside.Paces:
    return beside.measure(cast("Any", pair), cast("Any", pair), TEXT, list(FORWARD_S), at_once=at_once)


def test_what_each_takes_alone_behind_the_other_and_beside_it(pair: Pair) -> None:
    found = measured(pair, at_once=True)
    about: Any = pytest.approx
    assert found.forward_s == about(FORWARD_S) and found.host_s == about(START_S + END_S)
    assert (found.switch_s, found.refill_s) == (about(SWITCH_S), about(REFILL_S))
    assert found.step_s == about(STEP_S)
    assert found.first_s == about((STEP_S + COLD_S, STEP_S + COLD_S + SECOND_TOKEN_S))
    assert (found.target_slowing, found.draft_slowing) == (about(TARGET_SLOWING), about(DRAFT_SLOWING))


def test_the_simulator_slows_both_as_was_measured(pair: Pair) -> None:
    """A draft goes on all the while that a forward of 10.125 s runs."""
    paces = measured(pair, at_once=True)
    assert paces.at_once is not None
    target, draft = paces.at_once
    run = simulate(
        "overlapped", target, draft, k=4, acceptance=0.0, context=0, tokens=1, bus_gb_per_s=paces.bus,
        host_s=paces.host_s,
    )  # fmt: skip
    [forward, *steps] = run.timeline.jobs
    assert forward.end_s == pytest.approx(TARGET_SLOWING * (FORWARD_S[1] + REFILL_S - START_S - END_S))
    assert steps[0].end_s == pytest.approx(DRAFT_SLOWING * STEP_S)


def test_a_draft_that_outlasts_every_forward_tells_no_slowing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does it say that there is none."""
    monkeypatch.setitem(globals(), "STEP_S", 30.0)
    paces = measured(pair, at_once=True)
    assert (paces.target_slowing, paces.draft_slowing, paces.at_once) == (None, None, None)
    target, draft = paces.in_turns
    assert draft.forward(1, 0).seconds == pytest.approx(30.0) and target.start_s == pytest.approx(REFILL_S)
    monkeypatch.setattr(beside, "measure", lambda *_, **__: paces)
    monkeypatch.setattr(simulation, "_text", lambda pipeline: TEXT)
    pipeline: Any = SimpleNamespace(drafter=pair, target=pair, target_s=None)
    assert simulation.compare_overlapped(pipeline) == []
    assert capsys.readouterr().err.startswith("edgespec: no overlapped run is simulated: a step of the draft takes")


def test_guesses_without_scores_are_as_sure_as_the_overlapped_loop_takes_them() -> None:
    """Right or wrong: a draft does not know which."""
    text = [7, 8, 9]

    def guesses(*drafts: Draft) -> list[Guess]:
        each = iter(drafts)
        drafter: Any = SimpleNamespace(begin=lambda *_: None, propose=lambda context, k: next(each))
        return simulation._guesses(drafter, TEXT, text)

    unscored, loop = [Draft((7,)), Draft((1,)), Draft((9,))], Guesses()
    for draft in unscored:
        loop.add(draft)
    found = guesses(*unscored)
    assert [guess.right for guess in found] == [True, False, True]
    assert [guess.score for guess in found] == loop.scores == [1.0, 1.0, 1.0]
    scored = guesses(*(Draft((token,), scores=(0.25,)) for token in (7, 1, 9)))
    assert scored == [Guess(True, 0.25), Guess(False, 0.25), Guess(True, 0.25)]


def test_in_turns_each_is_behind_the_other(pair: Pair) -> None:
    """A round of k 1, all right: a first step that reads two tokens, and a forward of two rows behind it."""
    paces = measured(pair, at_once=False)
    assert (paces.target_slowing, paces.draft_slowing, paces.host_s) == (1.0, 1.0, 0.0)
    target, draft = paces.in_turns
    round_s = STEP_S + COLD_S + FORWARD_S[2] + REFILL_S
    run = simulate("synchronous", target, draft, k=1, acceptance=1.0, context=0, tokens=4, bus_gb_per_s=paces.bus)
    assert run.timeline.now_s == pytest.approx(2 * round_s + SECOND_TOKEN_S)
    assert replace(paces, forward_s={2: 12.0, 4: 16.0}).alone.forward(1, 0).seconds == 12.0, "it is padded"
    plain = simulate("synchronous", paces.alone, None, k=0, context=0, tokens=3, bus_gb_per_s=paces.bus)
    assert plain.timeline.now_s == pytest.approx(3 * FORWARD_S[1])
