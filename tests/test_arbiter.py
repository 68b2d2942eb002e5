"""Deciding who drafts and how far, in virtual time: what it gains, what it may lose, what it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec.adaptive.acceptance import ByPosition, ByScore
from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.calibration import ROWS_NEEDED, ForwardTimes, measure
from edgespec.adaptive.candidate import Candidate
from edgespec.adaptive.exploration import PROBE_SHARE
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.fake import FakeModel, Table, VirtualClock, random_table
from edgespec.decode.policy import FixedLength, Plain
from edgespec.decode.speculative import speculative
from edgespec.drafters.ngram import NGram
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.small_model import SmallModel
from edgespec.protocols import Constraint, Drafter, Policy
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Allowed, Draft, Logits, Step, Verdict
from tests.policies import fixed

VOCAB = 32
TABLE = random_table(VOCAB, seed=5, order=3, scale=4.0)
BUDGET = 400
PROMPT = [1, 2, 3]
GREEDY = SamplingParams()


def target_s(width: int) -> float:
    return 1.0 + 0.08 * (width - 1)


def mixed_with_noise(share: float, seed: int = 9) -> Table:
    """As the target, but for ``share`` of the texts, where it says something of its own."""
    other = random_table(VOCAB, seed=seed, order=3, scale=4.0)

    @cache
    def noisy(state: tuple[int, ...]) -> bool:
        return bool(np.random.default_rng([seed, *(t + 1 for t in state)]).random() < share)

    return lambda text: other(text) if noisy(text[-3:]) else TABLE(text)


class World:
    """A target, a draft and their shared clock."""

    def __init__(self, draft: Table, step_s: float = 0.1, table: Table = TABLE) -> None:
        self.clock = VirtualClock()
        self.target = FakeModel(table, VOCAB, forward_s=target_s, clock=self.clock, capacity=1024)
        self.model = FakeModel(draft, VOCAB, forward_s=lambda width: step_s, clock=self.clock, capacity=1024)
        self.small = SmallModel(self.model, VOCAB)

    def arbiter(self, free: Sequence[Drafter] = (), *, model: bool = True, trees: bool = False) -> Arbiter:
        costs = [ForwardCost(self.times(part)) for part in (self.target, self.model)]
        small = self.small if model else None
        self.small.alternatives = trees
        return Arbiter(free, small, target_s=costs[0], draft_s=costs[1] if model else None, trees=trees)

    def times(self, model: FakeModel) -> ForwardTimes:
        found = measure(model, self.clock)
        model.widths.clear()
        return found

    def run(
        self,
        policy: Policy,
        prompt: Sequence[int] = PROMPT,
        constraint: Constraint | None = None,
        params: SamplingParams = GREEDY,
    ) -> tuple[float, Stats]:
        """(seconds a token, books)."""
        self.target.cache.reset()
        self.model.cache.reset()
        if isinstance(policy, Arbiter):
            policy.reset()
        stats = Stats(clock=self.clock)
        context = list(prompt)
        for _ in speculative(
            self.target, policy, context, params, stop=(), budget=BUDGET, stats=stats,
            constraint=constraint,
        ):  # fmt: skip
            rows = list(self.model.cache.tokens)
            assert rows == context[: len(rows)], "the draft's cache holds a token that was not committed"
        return stats.decode_s / stats.committed, stats


def plain(world: World, prompt: Sequence[int] = PROMPT) -> float:
    return world.run(Plain(), prompt)[0]


@pytest.mark.parametrize("step_s", [0.02, 0.1, 0.4])
@pytest.mark.parametrize(
    "draft", [random_table(VOCAB, seed=77), lambda text: -TABLE(text)], ids=["random", "adversarial"]
)
def test_a_useless_draft_costs_no_more_than_the_probes(draft: Table, step_s: float) -> None:
    world = World(draft, step_s)
    arbiter = world.arbiter()
    base = plain(world)
    assert world.run(arbiter)[0] < base * 1.05, "while it learns"
    assert world.run(arbiter)[0] < base * 1.02, "once it knows"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_that_finds_no_token_to_propose_costs_no_more_than_the_probes(temperature: float) -> None:
    """Its steps take their time although nothing comes of them."""
    params = SamplingParams(temperature=temperature, verification="rejection", seed=1, logit_bias={3: -np.inf})
    world = World(lambda text: TABLE(text)[3:4], 0.4)
    world.model.vocab_size = 1
    world.small = SmallModel(world.model, VOCAB, id_map=np.array([3], np.int32))
    arbiter = world.arbiter()
    base = world.run(Plain(), params=params)[0]
    assert world.run(arbiter, params=params)[0] < base * 1.05, "while it learns"
    each_s, stats = world.run(arbiter, params=params)
    assert each_s < base * 1.02, "once it knows"
    assert any(r.draft_s for r in stats.rounds) and not stats.proposed


def test_a_draft_whose_context_is_full_takes_no_time_and_teaches_nothing_about_it() -> None:
    world = World(TABLE)
    world.model.cache.capacity = 600
    arbiter = world.arbiter()
    world.model.cache.capacity = 40
    _, stats = world.run(arbiter)
    assert stats.rounds[0].draft_s and not any(r.draft_s for r in stats.rounds[40:])
    assert world.small.unread_tokens(40) > 0 == world.small.unread_tokens(41)
    assert arbiter.draft_s is not None and arbiter.draft_s.seconds(1, 0) == pytest.approx(0.1)


def test_contenders_share_no_costs() -> None:
    """What one of them learns while the machine is slow is not known to the next."""
    world = World(mixed_with_noise(0.3), 0.1)
    whole = world.arbiter()

    def drafted() -> list[int]:
        part = whole.only("small_model")
        return [r.proposed for r in world.run(part)[1].rounds]

    before = drafted()
    world.model.forward_s = lambda width: 0.6
    assert drafted() != before
    world.model.forward_s = lambda width: 0.1
    assert drafted() == before


@pytest.mark.parametrize("step_s", [0.03, 0.15])
def test_it_is_as_good_as_the_best_fixed_length(step_s: float) -> None:
    """In the mean over worlds: a text more or less is luck, and which length is best is known only afterwards."""
    ratios = []
    for seed in (9, 19):
        for share in (0.05, 0.2, 0.5, 0.8):
            world = World(mixed_with_noise(share, seed), step_s)
            arbiter = world.arbiter()
            world.run(arbiter)  # learns
            own, _ = world.run(arbiter)
            ratios.append(own / min(world.run(fixed(world.small, k))[0] for k in range(9)))
    assert float(np.mean(ratios)) < 1.02, ratios


def test_it_takes_the_copy_where_the_text_repeats_and_the_model_elsewhere() -> None:
    period = 40

    def table(text: tuple[int, ...]) -> Logits:
        """New text for a while, then a copy of it, and again."""
        block, place = divmod(len(text), 2 * period)
        origin = len(text) - period if place >= period else None
        row = np.zeros(VOCAB, np.float32)
        row[text[origin] if origin is not None else (block * 7919 + place * place * 31 + place) % VOCAB] = 9.0
        return row

    def half_blind(text: tuple[int, ...]) -> Logits:
        row = table(text)
        return row if len(text) % 3 else np.roll(row, 1)

    world = World(half_blind, 0.1, table=table)
    arbiter = world.arbiter([NGram()])
    world.run(arbiter)
    both, stats = world.run(arbiter)
    alone = [world.run(part)[0] for part in (world.arbiter([NGram()], model=False), world.arbiter()) for _ in range(2)]
    assert both < min(alone)
    assert {"ngram", "small_model"} <= {r.drafter for r in stats.rounds}


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

        world = World(mixed_with_noise(0.5, seed), 0.1)
        world.target.forward_s = lambda width, true=true: 1.0 if width == 1 else 0.2 + 1.5 * true(width)
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


def test_the_reason_for_not_drafting_is_in_the_books() -> None:
    world = World(lambda text: -TABLE(text))
    arbiter = world.arbiter([NGram()])
    world.run(arbiter)
    _, stats = world.run(arbiter)
    assert {r.reason for r in stats.rounds if not r.proposed} >= {"nothing to copy"}
    assert all((r.expected is not None) == (r.proposed > 0) for r in stats.rounds)


def test_it_does_not_draft_where_width_is_dear() -> None:
    world = World(TABLE, 0.1)
    world.target.forward_s = lambda width: float(width)  # no forward checks two tokens for less than two would cost
    arbiter = world.arbiter()
    world.run(arbiter)
    ratio = world.run(arbiter)[0] / plain(world)
    assert ratio < 1.02


class Scored(NoDrafter):
    """Proposes the target's own token, or another one and says that it is not sure."""

    name = "scored"

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        tokens: list[int] = []
        scores: list[float] = []
        text = list(context)
        for _ in range(k):
            best = int(TABLE(tuple(text)).argmax())
            sure = (len(text) // 7) % 2 == 0
            tokens.append(best if sure else (best + 1) % VOCAB)
            scores.append(0.9 if sure else 0.3)
            text.append(best)
        return Draft(tuple(tokens), scores=tuple(scores))


def test_a_draft_is_cut_where_its_score_says_so() -> None:
    world = World(TABLE)
    world.target.forward_s = lambda width: 1.0 + 0.3 * (width - 1)
    arbiter = world.arbiter([Scored()], model=False)
    world.run(arbiter)
    _, stats = world.run(arbiter)
    assert stats.acceptance_rate is not None and stats.acceptance_rate > 0.95
    assert stats.accepted > 0.3 * BUDGET


def second_best_is_right(text: tuple[int, ...]) -> Logits:
    """A draft that has the target's token first or second, in turns that it does not know itself."""
    row = np.full(VOCAB, -9.0, np.float32)
    right = int(TABLE(text).argmax())
    wrong = (right + 1 + sum(text) % 7) % VOCAB
    first, second = (right, wrong) if sum(text[-2:]) % 2 else (wrong, right)
    row[first], row[second] = 1.0, 0.8
    return row


def test_trees_are_drafted_where_rows_are_cheap_and_never_where_they_are_dear() -> None:
    seconds, shares = [], []
    for a_row_s in (0.01, 0.8):
        for trees in (False, True):
            world = World(second_best_is_right, 0.05)
            world.target.forward_s = lambda width, a_row_s=a_row_s: 1.0 + a_row_s * (width - 1)
            arbiter = world.arbiter(trees=trees)
            world.run(arbiter)
            each_s, stats = world.run(arbiter)
            seconds.append(each_s)
            shares.append(sum(r.proposed > r.accepted + 1 for r in stats.rounds) / len(stats.rounds))
    assert seconds[1] < 0.85 * seconds[0], "cheap rows: both answers are verified"
    assert seconds[3] < 1.05 * seconds[2] and shares[3] < 0.2


class Sure(NoDrafter):
    """A look-up that always says 7, and is quite sure of it."""

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return Draft((7,) * k, scores=(0.9,) * k)


def test_a_draft_pays_for_the_rows_that_it_adds_to_forced_ones() -> None:
    """A forward of up to 4 rows takes 1 s, a wider one 2.5 s, and a token a second is what plain decoding gives."""
    steps = ForwardTimes((1, 4, 5, 16), 0, 1, (1.0, 1.0, 2.5, 2.5), (1.0, 1.0, 2.5, 2.5))
    drafted = []
    for forced in (0, 1, 2, 3):
        arbiter = Arbiter([Sure()], None, target_s=ForwardCost(steps))
        arbiter.begin(PROMPT, GREEDY)
        drafted.append(len(arbiter.draft([*PROMPT, *range(forced)], 1, forced)))
    assert drafted == [1, 1, 1, 0]


def test_a_runner_up_that_cannot_be_is_no_branch_and_teaches_nothing() -> None:
    candidate = Candidate(NoDrafter())
    before = candidate.of_alternatives.chance(0.0)
    candidate.proposed = Draft((4, 5), scores=(0.5, 1.0), alternatives=((6, 0.4), (5, 0.0)))
    assert [branch.tokens for branch in candidate.branches(candidate.proposed)] == [(4, 5), (6,)]
    candidate.learn([4, 5])
    assert candidate.of_alternatives.chance(0.0) == before


class Runs:
    """A constraint: of every five tokens the first three are given."""

    def __init__(self) -> None:
        self.length = 0

    def allowed(self, ahead: Sequence[int]) -> NDArray[np.bool_]:
        place = self.length + len(ahead)
        return np.arange(VOCAB) == place * 7 % VOCAB if place % 5 < 3 else np.ones(VOCAB, np.bool_)

    def commit(self, tokens: Sequence[int]) -> None:
        self.length += len(tokens)


@pytest.mark.parametrize("widest_free", [4, 6])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_with_forced_tokens_too_it_is_as_good_as_the_best_fixed_length(share: float, widest_free: int) -> None:
    world = World(mixed_with_noise(share), 0.15)
    world.target.forward_s = lambda width: 1.0 + 0.4 * max(0, width - widest_free)
    arbiter = world.arbiter()
    world.run(arbiter, constraint=Runs())
    own, stats = world.run(arbiter, constraint=Runs())
    assert stats.forced > 0.2 * BUDGET
    lengths = {k: world.run(fixed(world.small, k), constraint=Runs())[0] for k in range(6)}
    assert own < min(lengths.values()) * 1.05, lengths


# What it learns from


def test_places_behind_a_miss_and_behind_the_end_teach_nothing() -> None:
    by_position = ByPosition()
    for _ in range(200):
        by_position.update(0, True)
    assert by_position.chance(0) > 0.95
    assert by_position.chance(3) > 0.95, "a place that was never reached is as the one before it"
    for _ in range(200):
        by_position.update(1, False)
    assert by_position.chance(0) > 0.95 and by_position.chance(1) < 0.1
    assert by_position.chance(5) < 0.1


def test_scores_come_to_mean_what_happens() -> None:
    by_score = ByScore()
    assert 0.75 < by_score.chance(0.85) < 0.95, "at first a score is taken for a probability"
    random = np.random.default_rng(0)
    for _ in range(600):
        by_score.update(0.85, bool(random.random() < 0.3))
        by_score.update(0.2, bool(random.random() < 0.6))
    assert abs(by_score.chance(0.85) - 0.3) < 0.2 and abs(by_score.chance(0.2) - 0.6) < 0.2


class Shapes:
    """An engine for which a width other than the last one costs ``width_switch_s`` more."""

    def __init__(self, world: World, width_switch_s: float = 0.6) -> None:
        self.last, self.width_switch_s, self.changes = 0, width_switch_s, 0
        world.target.forward_s = self

    def __call__(self, width: int) -> float:
        changed, self.last = width != self.last, width
        self.changes += changed
        return target_s(width) + changed * self.width_switch_s


def test_a_change_of_width_is_measured_apart_from_the_width() -> None:
    world = World(TABLE)
    Shapes(world)
    times = world.times(world.target)
    assert times.width_switch_s == pytest.approx(0.6)
    assert times.at_short_s == pytest.approx([target_s(width) for width in times.widths])


def test_noise_in_the_calibration_never_makes_a_wider_forward_cheaper() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        world = World(TABLE)
        world.target.forward_s = lambda width: target_s(width) * (1 + 0.3 * random.random())
        cost = ForwardCost(world.times(world.target))
        for context in (0, 512, 4000, 30000):
            seconds = [cost.seconds(width, context) for width in cost.widths]
            assert seconds == sorted(seconds)


def test_widths_keep_still_where_changes_are_dear() -> None:
    """And it is as good as the best fixed length none the less. How far to draft depends on how sure the model is, so
    without regard to changes nearly every round has another width."""
    ratios = []
    for seed in (9, 19):
        for share in (0.05, 0.3, 0.6, 1.0):
            world = World(mixed_with_noise(share, seed), 0.05)
            shapes = Shapes(world)
            best = min(world.run(fixed(world.small, k))[0] for k in range(9))
            arbiter = world.arbiter()
            world.run(arbiter)  # learns
            shapes.changes = 0
            own, stats = world.run(arbiter)
            assert shapes.changes < 3 + 0.1 * len(stats.rounds)
            ratios.append(own / best)
    assert float(np.mean(ratios)) < 1.02, ratios


def ran(cost: ForwardCost, tokens: int) -> int:
    """The width at which a forward of so many tokens ran."""
    width = cost.width(tokens, 0)
    assert cost.width(tokens, 0) == width, "asking changes nothing"
    cost.update(tokens, 0, width, None)
    return width


def test_home_follows_what_is_asked_for() -> None:
    cost = ForwardCost(ForwardTimes((1, 2, 4, 8), 0, 100, (1.0, 1.1, 1.4, 2.0), (1.0, 1.1, 1.4, 2.0), 0.5))
    assert [ran(cost, 1) for _ in range(20)] == [1] * 20
    asked = [2, 1, 3, 1, 2, 4] * 20
    widths = [ran(cost, n) for n in asked]
    assert all(width >= n for width, n in zip(widths, asked, strict=True))
    assert set(widths[60:]) == {4}
    assert [ran(cost, 1) for _ in range(100)][-1] == 1
    assert ran(cost, 30) == 30, "wider than any measured: as it is"


def test_between_two_texts_home_moves_for_nothing() -> None:
    """Inside a text a hundredth does not pay for a move; the next text's first forward changes the width anyway."""
    cost = ForwardCost(ForwardTimes((2, 3, 8), 0, 100, (1.0, 1.02, 1.2), (1.0, 1.02, 1.2), 0.5), pinned_width=3)
    earned = {2: 0.0, 3: -0.02, 8: -0.2}  # nothing is drafted
    for _ in range(200):
        cost.vote_width(earned.__getitem__)
        assert ran(cost, 1) == 3
    cost.begin()
    assert cost.pinned_width == 2 and ran(cost, 1) == 2
    earned[8] = 0.009  # too little to tell apart
    for _ in range(20):
        cost.vote_width(earned.__getitem__)
    cost.begin()
    assert cost.pinned_width == 2


def test_costs_are_measured_and_follow_the_machine() -> None:
    clock = VirtualClock()
    slow = [1.0]
    cost_of: Callable[[int], float] = lambda width: slow[0] * (0.5 + 0.1 * width)  # noqa: E731
    model = FakeModel(TABLE, VOCAB, forward_s=cost_of, clock=clock, capacity=ROWS_NEEDED)
    cost = ForwardCost(measure(model, clock))
    assert model.cache.length == 0
    for width in (1, 4, 7, 10, 17):
        assert cost(width, 0) == pytest.approx(cost_of(width))
    slow[0] = 2.0
    for _ in range(60):
        cost.update(1, 100, 1, cost_of(1))
    assert cost(1, 100) == pytest.approx(1.2, rel=0.05)
    assert cost(8, 100) > 1.8, "widths not seen since follow too"
    before = cost(1, 100)
    cost.update(1, 100, 1, 800.0)
    assert cost(1, 100) < before * 1.1, "one outlier says little"
