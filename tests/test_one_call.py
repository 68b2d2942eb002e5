"""A drafter of one call on fake models: whose states it gets, what it costs, and what the arbiter makes of it."""

from __future__ import annotations

import numpy as np
import pytest

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.draft_cost import CallCost
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.fake import FakeModel, Table, VirtualClock
from edgespec.decode.policy import Plain
from edgespec.decode.speculative import speculative
from edgespec.drafters.first_match import FirstMatch
from edgespec.drafters.ngram import NGram
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from tests import loop_cases
from tests.heads import FakeHead
from tests.loop_cases import LAYERS, MODES, REJECTION
from tests.policies import fixed
from tests.virtual_world import TABLE, VOCAB, World, mixed_with_noise, plain


class HeadWorld(World):
    """A target and a head, where a plain step takes a second."""

    def __init__(self, draft: Table, call_s: float = 0.1, *, longest: int = 4) -> None:
        super().__init__(draft)
        self.target.capabilities = FakeModel(TABLE, VOCAB, layers=LAYERS).capabilities
        self.head = FakeHead(draft, VOCAB, longest=longest, call_s=call_s, clock=self.clock)

    def of_head(self, measured_s: float | None = None) -> Arbiter:
        call_s = self.head.call_s if measured_s is None else measured_s
        return Arbiter([], self.head, target_s=ForwardCost(self.times(self.target)), draft_s=CallCost(call_s))


def test_a_head_is_told_of_prompt_and_rounds_and_drafts_from_the_second_round_on() -> None:
    """Its first round begins at a state that nobody has computed yet, if the end of the prompt was deferred."""
    for leaves, first in ((0, 4), (8, 0)):
        head = FakeHead(loop_cases.TABLE, loop_cases.VOCAB)
        target = FakeModel(loop_cases.TABLE, loop_cases.VOCAB, leaves=leaves, layers=LAYERS)
        _, stats, _ = loop_cases.run(head, MODES["greedy"], 4, target=target)
        assert [r.evaluated for r in stats.rounds[:3]] == [first, 4, 4]
        assert stats.acceptance_rate == 1.0 and head.calls == sum(r.evaluated > 0 for r in stats.rounds)


def test_a_head_without_states_drafts_nothing_and_what_it_missed_costs_a_round() -> None:
    head = FakeHead(loop_cases.TABLE, loop_cases.VOCAB)
    target = FakeModel(loop_cases.TABLE, loop_cases.VOCAB, layers=LAYERS)
    loop_cases.run(FakeHead(loop_cases.TABLE, loop_cases.VOCAB), MODES["greedy"], 4, target=target)
    context, stats, _ = loop_cases.run(head, MODES["greedy"], 4, target=target)  # all of the prompt is held
    assert stats.reused_tokens == len(loop_cases.PROMPT) - 1
    assert [r.evaluated for r in stats.rounds[:3]] == [0, 4, 4]
    assert context == loop_cases.oracle(MODES["greedy"])


@pytest.mark.parametrize("mode", REJECTION)
def test_by_rejection_a_text_does_not_depend_on_what_the_target_holds(mode: str) -> None:
    """Neither on rows of the same text, nor on those of another, nor on where the prompt was cut."""
    texts = []
    for leaves in (0, 8):
        target = FakeModel(loop_cases.TABLE, loop_cases.VOCAB, leaves=leaves, layers=LAYERS)
        head = FakeHead(loop_cases.TABLE, loop_cases.VOCAB)
        texts += [loop_cases.run(head, REJECTION[mode], 4, target=target)[0] for _ in range(2)]
    assert texts == texts[:1] * 4


def test_a_draft_is_cut_where_another_token_is_not_worth_its_row() -> None:
    """Tokens cost a head nothing, rows cost the target something."""
    cheap, dear = (HeadWorld(mixed_with_noise(0.5), longest=8) for _ in range(2))
    dear.target.forward_s = lambda width: 1.0 + 0.3 * (width - 1)
    lengths = []
    for world in (cheap, dear):
        arbiter = world.of_head()
        world.run(arbiter)
        _, stats = world.run(arbiter)
        lengths.append(np.mean([r.evaluated for r in stats.rounds if r.evaluated]))
    assert lengths[1] < 0.7 * lengths[0]


@pytest.mark.parametrize("call_s", [0.05, 0.3])
def test_a_good_head_is_as_good_as_its_best_fixed_length(call_s: float) -> None:
    ratios = []
    for share in (0.05, 0.3, 0.6):
        world = HeadWorld(mixed_with_noise(share), call_s)
        arbiter = world.of_head()
        world.run(arbiter)
        own, _ = world.run(arbiter)
        ratios.append(own / min(world.run(fixed(world.head, k))[0] for k in range(5)))
    assert float(np.mean(ratios)) < 1.03, ratios


@pytest.mark.parametrize("call_s", [0.02, 0.4])
def test_a_useless_head_costs_no_more_than_the_probes(call_s: float) -> None:
    world = HeadWorld(lambda text: -TABLE(text), call_s)
    arbiter = world.of_head()
    base = plain(world)
    assert world.run(arbiter)[0] < base * 1.05, "while it learns"
    assert world.run(arbiter)[0] < base * 1.02, "once it knows"


def test_what_a_call_takes_is_learned_and_is_the_same_for_every_length() -> None:
    world = HeadWorld(TABLE, 0.3)
    arbiter = world.of_head(measured_s=0.1)
    world.run(arbiter)
    assert arbiter.draft_s is not None and arbiter.draft_s.start_s == pytest.approx(0.3, rel=0.1)
    assert arbiter.draft_s.seconds(1, 0) == 0.0
    fresh = arbiter.only("head").draft_s
    assert fresh is not None and fresh.start_s == 0.1


def test_no_more_is_hoped_for_than_a_head_can_draft() -> None:
    """A call of 2.5 steps: 2 tokens at most never pay for it, 16 would."""
    short, long = (HeadWorld(TABLE, 2.5, longest=longest) for longest in (2, 16))
    for world, pays in ((short, False), (long, True)):
        arbiter = world.of_head()
        world.run(arbiter)
        _, stats = world.run(arbiter)
        share = sum(r.evaluated > 0 for r in stats.rounds) / len(stats.rounds)
        assert share > 0.5 if pays else share < 0.05, share


def test_a_round_without_states_teaches_nothing() -> None:
    world = HeadWorld(TABLE)
    world.target.leaves = 8
    arbiter = world.of_head()
    _, stats = world.run(arbiter)
    assert stats.rounds[0].draft_s == 0.0 and stats.rounds[0].evaluated == 0
    assert arbiter._model is not None and arbiter._model.by_position.chance(0) > 0.9


def test_first_match_asks_the_head_last() -> None:
    world = HeadWorld(TABLE)
    drafter = FirstMatch([NGram()], world.head)
    assert drafter.needs.layers == LAYERS and drafter.model is None
    _, stats = world.run(fixed(drafter, 4))
    assert set(stats.by_drafter) >= {"head"}


def test_a_stream_that_is_dropped_leaves_no_state_of_another_text() -> None:
    """The head of these tests holds every state against its text."""
    target = FakeModel(TABLE, VOCAB, layers=LAYERS, leaves=4)
    head, clock = FakeHead(TABLE, VOCAB), VirtualClock()
    for rounds, prompt in enumerate(([1, 2, 3], [1, 2, 3, 4], [1, 2], [5, 2, 3], [5, 2, 3]), 1):
        context = list(prompt)
        loop = speculative(
            target, fixed(head, 3), context, SamplingParams(), stop=(), budget=40, stats=Stats(clock=clock)
        )
        for _ in range(rounds):
            next(loop)
        loop.close()  # type: ignore[attr-defined]
        written, expected = context[len(prompt) :], list(prompt)
        for _ in speculative(
            FakeModel(TABLE, VOCAB), Plain(), expected, SamplingParams(), stop=(), budget=len(written), stats=Stats()
        ):
            pass
        assert context == expected
