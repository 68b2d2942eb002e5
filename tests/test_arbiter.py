"""Who drafts and how far, in virtual time: what the arbiter gains, and what it may lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.calibration import ForwardTimes
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.fake import Table, random_table
from edgespec.decode.policy import Plain
from edgespec.drafters.ngram import NGram
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.small_model import SmallModel
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, Logits
from tests.policies import fixed
from tests.virtual_world import BUDGET, GREEDY, PROMPT, TABLE, VOCAB, World, mixed_with_noise, plain


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


def test_drafters_alone_share_no_costs() -> None:
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


def test_the_reason_for_not_drafting_is_in_the_books() -> None:
    world = World(lambda text: -TABLE(text))
    arbiter = world.arbiter([NGram()])
    world.run(arbiter)
    _, stats = world.run(arbiter)
    assert {r.reason for r in stats.rounds if not r.proposed} >= {"nothing to copy"}
    assert all((r.expected is not None) == (r.proposed > 0) for r in stats.rounds)


def test_it_does_not_draft_where_width_is_expensive() -> None:
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


def seconds_by_rows(a_row_s: float) -> Callable[[int], float]:
    return lambda width: 1.0 + a_row_s * (width - 1)


def test_trees_are_drafted_where_rows_are_cheap_and_never_where_they_are_expensive() -> None:
    seconds, shares = [], []
    for a_row_s in (0.01, 0.8):
        for trees in (False, True):
            world = World(second_best_is_right, 0.05)
            world.target.forward_s = seconds_by_rows(a_row_s)
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
