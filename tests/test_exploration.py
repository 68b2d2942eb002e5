"""What the arbiter does not know it looks up, within a share of the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.exploration import PROBE_SHARE
from edgespec.decode.policy import FixedLength
from edgespec.protocols import Drafter
from edgespec.types import Allowed, Draft, Step, Verdict
from tests.policies import fixed
from tests.virtual_world import BUDGET, TABLE, VOCAB, World, mixed_with_noise, plain, target_s


def test_a_model_that_becomes_good_is_found_again() -> None:
    good = [False]
    world = World(lambda text: TABLE(text) if good[0] else -TABLE(text))
    arbiter = world.arbiter()
    world.run(arbiter)
    _, bad = world.run(arbiter)
    good[0] = True
    world.run(arbiter)
    late, stats = world.run(arbiter)
    assert sum(r.proposed > 0 for r in bad.rounds) < 0.2 * len(bad.rounds)
    assert late < 0.5 * plain(world)
    assert stats.block_efficiency is not None and stats.block_efficiency > 3


@pytest.mark.parametrize("noise", [0.0, 0.08])
@pytest.mark.parametrize(("step_s", "a_row_s"), [(0.9, 0.05), (0.4, 0.5)])
def test_it_finds_out_that_plain_decoding_would_be_faster_than_what_it_does(
    step_s: float, a_row_s: float, noise: float
) -> None:
    """The draft is always right, and a forward of more than one token takes longer than was measured: behind the
    draft's own, say. As long as every round drafts, that looks as if the machine had become slow."""
    random = np.random.default_rng(4)
    world = World(TABLE, step_s)
    world.target.forward_s = lambda width: 1.0 + a_row_s * (width - 1)
    arbiter = world.arbiter()
    world.run(arbiter)  # learns that the draft is right
    world.target.forward_s = lambda width: float(
        (1.0 + a_row_s * (width - 1)) * (1.0 if width == 1 else 1.4) * np.exp(noise * random.standard_normal())
    )
    _, first = world.run(arbiter)
    assert sum(r.proposed > 0 for r in first.rounds[:8]) > 4, "it began by believing what was measured"
    ratios = [world.run(arbiter)[0] / plain(world) for _ in range(5)]
    assert max(ratios[2:]) < 1.05 and float(np.mean(ratios[2:])) < 1.03, ratios


class Taught(FixedLength):
    """A token every round by the model, and the arbiter is told what became of it."""

    def __init__(self, drafter: Drafter, arbiter: Arbiter) -> None:
        super().__init__(drafter, 1)
        assert arbiter._model
        self.candidate = arbiter._model

    def draft(self, context: Sequence[int], limit: int, forced: int = 0, allowed: Allowed | None = None) -> Draft:
        self.candidate.proposed = super().draft(context, limit, forced, allowed)
        return self.candidate.proposed

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        super().commit(context, draft, verdict, step)
        self.candidate.learn(verdict.tokens)


def test_a_perfect_draft_that_has_to_read_its_last_token_again_is_charged_with_that() -> None:
    """Behind a draft that was accepted whole it reads two tokens; without them drafting one looks as if it paid."""
    world = World(TABLE, 0.0)
    world.model.forward_s = lambda width: 0.85 * (1 + 0.3 * (width - 1))
    world.target.forward_s = lambda width: 1.0 + 0.1 * (width - 1) if width < 3 else float(width)
    arbiter = world.arbiter()
    world.run(Taught(world.small, arbiter))  # the draft is right
    ratios = [world.run(arbiter)[0] / plain(world) for _ in range(3)]
    assert max(ratios) < 1.02, ratios


@pytest.mark.parametrize("noise", [0.0, 0.08])
def test_it_finds_out_that_wider_forwards_are_cheaper_than_was_measured(noise: float) -> None:
    """The machine was busy when they were. As long as no round drafts, nothing is seen of them."""
    found = []
    for seed in (9, 19, 29):
        random = np.random.default_rng(seed)

        def true(width: int, random: np.random.Generator = random) -> float:
            return (1.0 + 0.25 * (width - 1)) * float(np.exp(noise * random.standard_normal()))

        def measured(width: int, true: Callable[[int], float] = true) -> float:
            return 1.0 if width == 1 else 0.2 + 1.5 * true(width)

        world = World(mixed_with_noise(0.5, seed), 0.1)
        world.target.forward_s = measured
        arbiter = world.arbiter()
        world.target.forward_s = true
        best = world.run(fixed(world.small, 1))[0]
        found += [world.run(arbiter)[0] / best for _ in range(6)][2:]
    assert plain(world) / best > 1.1, "a token that nobody drafts takes longer"
    assert float(np.mean(found)) < 1.05, found


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_looking_what_plain_decoding_would_take_costs_next_to_nothing(share: float) -> None:
    world = World(mixed_with_noise(share), 0.1)
    arbiter = world.arbiter()
    world.run(arbiter)
    each_s, stats = world.run(arbiter)
    looked = [r for r in stats.rounds if r.reason == "to compare"]
    assert looked, "nobody knows what plain decoding takes now"
    lost = sum(r.target_s - each_s for r in looked)
    assert lost <= PROBE_SHARE * stats.decode_s * 1.5


def test_a_draft_model_reads_a_long_prompt_when_that_pays() -> None:
    """Not before, for a text that may be short; and what is written in the meantime is read with it."""
    world = World(TABLE, 0.0)
    world.model.forward_s = lambda width: 0.05 * width
    arbiter = world.arbiter()
    short = world.run(arbiter)[1]
    assert short.prefill_s > 0 and short.rounds[0].proposed, "it reads a short one before the first round"
    arbiter = world.arbiter()
    _, stats = world.run(arbiter, prompt=[i % VOCAB for i in range(700)])
    read = next(at for at, r in enumerate(stats.rounds) if r.draft_s)
    assert 20 < read < BUDGET * 3 / 4, read
    assert {r.reason for r in stats.rounds[:read]} == {"too much to read first"}
    assert stats.rounds[read].draft_s > 0.05 * 700


def test_a_draft_model_does_not_read_up_on_a_text_for_a_trial() -> None:
    """What it takes to read what was written without it is a part of what a trial costs."""
    world = World(lambda text: -TABLE(text))
    world.model.forward_s = lambda width: 0.3 * width
    arbiter = world.arbiter()
    base = plain(world)
    looked = []
    for _ in range(6):
        each_s, stats = world.run(arbiter)
        assert each_s < base * 1.02
        looked.append(any(r.draft_s for r in stats.rounds))
    assert any(looked[3:]), "it never looks again"


def test_trials_stay_within_their_share() -> None:
    world = World(lambda text: -TABLE(text), 0.3)
    arbiter = world.arbiter()
    world.run(arbiter)
    _, stats = world.run(arbiter)
    tried = [r for r in stats.rounds if r.proposed]
    assert tried, "it never looks again"
    lost = sum(r.draft_s + r.target_s - target_s(1) for r in tried)
    assert lost <= PROBE_SHARE * stats.decode_s * 1.5
