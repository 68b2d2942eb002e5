"""The overlapped loop on fake models and a virtual clock: the same tokens in every interleaving, and its time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import pytest

from edgespec.backends.fake import FakeModel, VirtualClock, random_table
from edgespec.decode.overlapped import Guesses, overlapped
from edgespec.drafters.small_model import SmallModel
from edgespec.errors import SettingError
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Logits
from tests.loop_cases import DRAFTERS, MODES, PROMPT, TABLE, VOCAB, oracle

STEP_S = 1.0


def near(text: tuple[int, ...]) -> Logits:
    """A draft that is right most of the time."""
    return (TABLE(text) + 0.3 * random_table(VOCAB, seed=5)(text)).astype(np.float32)


class Pair:
    """A target and a draft on one clock. target_s: seconds of a forward of the target; draft_s: of a draft step."""

    def __init__(
        self,
        target_s: Callable[[int], float],
        draft_s: Callable[[int], float] = lambda width: STEP_S,
        table: Callable[[tuple[int, ...]], Logits] = near,
        *,
        capacity: int = 512,
    ) -> None:
        self.clock = VirtualClock()
        self.target = FakeModel(TABLE, VOCAB, forward_s=target_s, clock=self.clock, capacity=capacity)
        self.draft = FakeModel(table, VOCAB, forward_s=draft_s, clock=self.clock)
        self.drafter = SmallModel(self.draft, VOCAB, name="draft")
        self.stats = Stats(clock=self.clock)

    def rounds(
        self,
        context: list[int],
        params: SamplingParams = SamplingParams(),  # noqa: B008 - frozen
        *,
        budget: int = 40,
        most: int = 4,
        look_ahead: int = 8,
        least_chance: float = 0.0,
        stop: Sequence[int] = (),
    ) -> Generator[list[int], None, None]:
        return overlapped(
            *(self.target, self.drafter, context, params),
            most=most,
            look_ahead=look_ahead,
            least_chance=least_chance,
            budget=budget,
            stop=stop,
            stats=self.stats,
        )

    def run(self, params: SamplingParams = SamplingParams(), **limits: Any) -> list[int]:  # noqa: B008 - frozen
        context = list(PROMPT)
        for _ in self.rounds(context, params, **limits):
            assert list(self.target.cache.tokens) == context[:-1]
            kept = list(self.draft.cache.tokens)
            assert kept[: len(context) - 1] == context[: min(len(context) - 1, len(kept))], "the draft forgot a miss"
        return context


def constant(seconds: float) -> Callable[[int], float]:
    return lambda width: seconds


def in_turn(seconds: Sequence[float]) -> Callable[[int], float]:
    """Each forward takes the next of these times; those after the last one take as long as it."""
    left = list(seconds)
    return lambda width: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target_s", [0.1, 0.9, 1.0, 2.5, 7.0])
def test_tokens_are_the_oracles_at_any_pace(mode: str, target_s: float) -> None:
    assert Pair(constant(target_s)).run(MODES[mode]) == oracle(MODES[mode])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", ["equal", "close", "opposite", "short-context", "trimmed", "trimmed on both sides", "padded"]
)
def test_tokens_are_the_oracles_with_any_draft_model(mode: str, name: str) -> None:
    """As ``test_loop`` has it for the synchronous loop."""
    pair = Pair(constant(2.5))
    made = DRAFTERS[name]()
    assert isinstance(made, SmallModel) and isinstance(made.model, FakeModel)
    made.model.clock = pair.clock
    pair.drafter, pair.draft = made, made.model
    context = list(PROMPT)
    list(pair.rounds(context, MODES[mode]))
    assert context == oracle(MODES[mode])
    assert pair.stats.guessed is not None and (pair.stats.guessed.kept > 0 or name not in ("equal", "close"))


def test_every_guess_is_kept_or_stale_or_not_yet_verified() -> None:
    pair = Pair(constant(2.5))
    pair.run(budget=40, look_ahead=8)
    assert pair.stats.guessed is not None
    guessed = pair.stats.guessed.kept + pair.stats.guessed.stale
    steps = len(pair.draft.widths)
    assert steps - 8 <= guessed <= steps and pair.stats.guessed.kept >= pair.stats.accepted


def test_it_does_not_go_on_behind_guesses_that_are_unlikely() -> None:
    """The scores of these models are some 0.7: one guess is likely enough, and a second one is."""
    found = []
    for least_chance in (0.0, 0.6, 1.0):
        pair = Pair(constant(9.0))
        pair.run(least_chance=least_chance)
        found.append(len(pair.draft.widths) / len(pair.stats.rounds))
    assert found[0] > found[1] > found[2] and found[2] <= 1, "steps a round"


def test_a_step_that_would_end_late_is_not_begun() -> None:
    """A forward takes 1.2 steps. The second step of a round would make the target wait for 0.8."""
    pair = Pair(constant(1.2), table=TABLE)
    pair.run(budget=40)
    waited = [round_.target_s - 1.2 for round_ in pair.stats.rounds]
    assert sum(late > 0.1 for late in waited) <= 6, "only until the forward's time is known at each width"


def test_tokens_are_the_oracles_in_every_interleaving_of_four_rounds() -> None:
    """A forward of the target ends before, at, or after the first, second, third or fourth step of the draft."""
    expected = oracle(SamplingParams())[: len(PROMPT) + 12]
    seen = set()
    paces = itertools.product((0.5, 1.0, 1.5, 2.5, 3.5), repeat=4)
    for times, table in itertools.product(paces, (near, TABLE)):
        pair = Pair(in_turn([1.0, *times]), table=table)  # the prompt comes first
        assert pair.run(budget=12) == expected, times
        seen.add(tuple((round_.evaluated, round_.committed) for round_ in pair.stats.rounds[:4]))
    assert len(seen) > 40, "the paces did not interleave differently"


@pytest.mark.parametrize("seed", range(8))
def test_tokens_are_the_oracles_with_random_delays(seed: int) -> None:
    delays = random.Random(seed)
    pair = Pair(lambda width: delays.choice([0.1, 1.0, 3.0]), lambda width: delays.choice([0.1, 1.0, 9.0]))
    mode = list(MODES.values())[seed % len(MODES)]
    assert pair.run(mode, most=1 + seed % 5, look_ahead=1 + seed) == oracle(mode)


def test_a_draft_that_is_right_writes_as_fast_as_it_drafts() -> None:
    """A draft of half a forward: one after the other, two guesses and a forward are three tokens in four half steps.
    Overlapped, a token takes a step of the draft."""
    pair = Pair(constant(2 * STEP_S), table=TABLE)
    began = pair.clock.now_s
    context = pair.run(budget=40)
    seconds = pair.clock.now_s - began
    assert context == oracle(SamplingParams())[: len(context)]
    assert seconds / 40 < 1.2 * STEP_S


def test_a_draft_that_is_always_wrong_costs_a_step_at_most() -> None:
    wrong = lambda text: np.roll(TABLE(text), 1)  # noqa: E731
    pair = Pair(constant(10.0), table=wrong)
    pair.run(budget=40)
    decoding = [round_ for round_ in pair.stats.rounds if not round_.read]
    assert all(round_.target_s <= 10.0 + STEP_S for round_ in decoding)


def test_a_stalled_draft_does_not_stall_the_text() -> None:
    """A step of the draft takes fifty forwards. It sits out one round, then two, four, eight and sixteen."""
    pair = Pair(constant(1.0), constant(50.0))
    pair.run(budget=40)
    late = [number for number, round_ in enumerate(pair.stats.rounds) if round_.target_s > 1.0]
    assert late == [0, 1, 3, 6, 11, 20, 37], "round 0 reads the prompt"
    assert {round_.reason for round_ in pair.stats.rounds if not round_.evaluated} == {"the draft was not ready"}


def test_guesses_stay_if_they_begin_with_what_was_committed() -> None:
    guesses = Guesses(context_length=7, tokens=[4, 5, 6], scores=[0.5, 0.6, 0.7])
    guesses.committed((4, 5))
    assert (guesses.epoch, guesses.context_length, guesses.tokens, guesses.scores) == (0, 9, [6], [0.7])
    guesses.committed((6, 1))
    assert (guesses.epoch, guesses.context_length, guesses.tokens, guesses.scores) == (1, 11, [], [])


def test_the_draft_reads_no_token_twice_while_it_is_right() -> None:
    pair = Pair(constant(2 * STEP_S), table=TABLE)
    pair.run(budget=30)
    assert pair.draft.widths[1:] == [1] * (len(pair.draft.widths) - 1), "all but the prompt is read one by one"


@pytest.mark.parametrize("look_ahead", [1, 2, 5])
def test_the_look_ahead_is_capped(look_ahead: int) -> None:
    pair = Pair(constant(100.0), table=TABLE)
    context = list(PROMPT)
    for _ in pair.rounds(context, look_ahead=look_ahead, most=4):
        assert pair.draft.cache.length <= len(context) + look_ahead


def test_stop_budget_and_a_full_context_end_it() -> None:
    expected = oracle(SamplingParams())
    token = expected[len(PROMPT) + 5]
    first = expected.index(token, len(PROMPT))
    context = list(PROMPT)
    list(Pair(constant(2.5)).rounds(context, stop=[token]))
    assert context == expected[: first + 1]
    assert len(Pair(constant(2.5)).run(budget=3)) == len(PROMPT) + 3
    assert Pair(constant(2.5), capacity=len(PROMPT) + 6).run() == expected[: len(PROMPT) + 7]


def test_an_abandoned_text_leaves_the_caches_right_for_the_next() -> None:
    pair = Pair(constant(2.5))
    context = list(PROMPT)
    rounds = pair.rounds(context)
    for _ in range(3):
        next(rounds)
    rounds.close()
    assert pair.run() == oracle(SamplingParams())


def test_an_error_of_the_draft_is_raised_and_the_next_text_is_right() -> None:
    class Lost(Exception):
        pass

    def broken(width: int) -> float:
        raise Lost

    pair = Pair(constant(2.5))
    with pytest.raises(Lost):
        steps = pair.draft.forward_s
        pair.draft.forward_s = broken
        pair.run()
    assert pair.clock.now_s == 5.0, "the target's forward ran on, and wrote to a cache that others may change"
    pair.draft.forward_s = steps
    assert pair.run() == oracle(SamplingParams())


def test_rejection_is_refused() -> None:
    params = SamplingParams(temperature=1.0, seed=1, verification="rejection")
    with pytest.raises(SettingError, match="verification; got rejection; allowed: coupled"):
        Pair(constant(1.0)).run(params)
