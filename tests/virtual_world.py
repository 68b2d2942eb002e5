"""A target and a draft in virtual time, for tests of the arbiter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.calibration import ForwardTimes, measure
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.fake import FakeModel, Table, VirtualClock, random_table
from edgespec.decode.policy import Plain
from edgespec.decode.speculative import speculative
from edgespec.drafters.small_model import SmallModel
from edgespec.protocols import Constraint, Drafter, Policy
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats

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
