"""Costs of forwards, and the width at which they run where a switch of width is expensive."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgespec.adaptive.calibration import ROWS_NEEDED, ForwardTimes, measure
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.fake import FakeModel, VirtualClock
from edgespec.stats import Stats
from edgespec.types import Round
from tests.policies import fixed
from tests.virtual_world import TABLE, VOCAB, World, mixed_with_noise, target_s


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


def test_widths_keep_still_where_switches_are_expensive() -> None:
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


def test_the_pinned_width_follows_what_is_asked_for() -> None:
    cost = ForwardCost(ForwardTimes((1, 2, 4, 8), 0, 100, (1.0, 1.1, 1.4, 2.0), (1.0, 1.1, 1.4, 2.0), 0.5))
    assert [ran(cost, 1) for _ in range(20)] == [1] * 20
    asked = [2, 1, 3, 1, 2, 4] * 20
    widths = [ran(cost, n) for n in asked]
    assert all(width >= n for width, n in zip(widths, asked, strict=True))
    assert set(widths[60:]) == {4}
    assert [ran(cost, 1) for _ in range(100)][-1] == 1
    assert ran(cost, 30) == 30, "wider than any measured: as it is"


def test_between_two_texts_the_pinned_width_moves_for_nothing() -> None:
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


def test_a_change_of_width_is_no_slower_machine() -> None:
    """Forwards take as long as measured, and 0.5 more behind another width. So would those of an idle machine."""
    cost = ForwardCost(ForwardTimes((1, 4), 0, 100, (1.0, 2.0), (1.0, 2.0), 0.5))

    def rounds(*widths: int, times: float = 1.0) -> list[Round]:
        before = 0
        found = []
        for width in widths:
            seconds = times * (cost.seconds(width, 0) + 0.5 * (width != before))
            found.append(Round("model", 3, 3, 1, 2, 0.0, seconds, 0.0, width=width))
            before = width
        return found

    assert cost.slower(Stats(rounds=rounds(1, 4, 1, 4, 4))) == 1.0
    assert cost.slower(Stats(rounds=rounds(1, 4, 1, 4))) == 1.0, "nobody can tell"
    assert cost.slower(Stats(rounds=rounds(4, 4, 1, 4, times=3.0))) == 3.0


def test_two_threads_that_ask_for_the_same_width_get_the_same_cost() -> None:
    """Another thread may ask while one finds out what a width costs."""

    class Interrupted(ForwardCost):
        def _of_width(self, width: int) -> tuple[float, float, int]:
            if width and not self.was_interrupted:
                self.was_interrupted = True
                self.seconds(4, 0)
            return super()._of_width(width)

        was_interrupted = False

    times = ForwardTimes((1, 4, 8), 0, 100, (1.0, 2.0, 5.0), (1.0, 2.0, 5.0))
    shared, alone = Interrupted(times), ForwardCost(times)
    assert [shared.seconds(width, 0) for width in range(9)] == [alone.seconds(width, 0) for width in range(9)]
    assert shared.was_interrupted
