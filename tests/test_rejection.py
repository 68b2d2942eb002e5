"""Rejection: the algebra of what is accepted and corrected, without chance; and how much is accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgespec.backends.fake import FakeModel, random_table
from edgespec.decode.speculative import speculative
from edgespec.decode.verify import residual, without
from edgespec.drafters.small_model import SmallModel
from edgespec.sampling import probabilities
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Distribution, Draft, Logits
from tests.distributions import PLAIN, REJECTION
from tests.policies import fixed


def test_a_draft_must_say_what_it_was_drawn_from() -> None:
    one = Distribution(np.array([3]), np.array([1.0]))
    for bad in (
        {"tokens": (3,), "kind": "sampled"},
        {"tokens": (3, 3), "kind": "sampled", "probs": (one,)},
        {"tokens": (3,), "probs": (one,)},
    ):
        with pytest.raises(AssertionError):
            Draft(**bad)


# The algebra, without chance.

weights = st.lists(st.integers(0, 20), min_size=6, max_size=6).filter(any)


def of_weights(numbers: Sequence[int], ids: Sequence[int]) -> Distribution:
    some = [(i, n) for i, n in zip(ids, numbers, strict=True) if n]
    probs = np.array([n for _, n in some], float)
    return Distribution(np.array([i for i, _ in some]), probs / probs.sum())


@settings(deadline=None)
@given(weights, weights, st.permutations(range(6)), st.integers(0, 3))
def test_accepted_and_corrected_together_are_the_target(
    target: list[int], draft: list[int], order: list[int], shift: int
) -> None:
    """min(target, draft) + (1 - sum of it) * residual = target; for sparse distributions in any order of ids."""
    p = of_weights(target, range(6))
    q = of_weights([draft[i] for i in order], [i + shift for i in order])
    accepted = np.array([min(p.of(i), q.of(i)) for i in range(6)])
    left = residual(p, q)
    assert abs(left.probs.sum() - 1) < 1e-12
    total = accepted + (1 - accepted.sum()) * np.array([left.of(i) for i in range(6)])
    assert np.allclose(total, [p.of(i) for i in range(6)], atol=1e-12)


def test_what_is_left_of_a_draft_keeps_its_digits_where_the_tried_token_was_nearly_certain() -> None:
    left = without(Distribution(np.array([0, 1, 2]), np.array([1.0, 3e-20, 1e-20])), 0)
    assert np.allclose(left.probs, [0.75, 0.25])
    assert not len(without(Distribution(np.array([4]), np.array([1.0])), 4).ids)


def test_equal_distributions_leave_the_target_where_rounding_rejects() -> None:
    p = of_weights([3, 4, 5, 0, 0, 0], range(6))
    assert residual(p, p) is p


# Acceptance.


def total_variation(target: Logits, draft: Logits, params: SamplingParams) -> float:
    return float(np.abs(probabilities(target, params) - probabilities(draft, params)).sum() / 2)


def surplus(settings: dict[str, Any], hoped: Callable[[float], float]) -> float:
    """Accepted drafts beyond ``hoped``, in standard deviations. hoped: chance of one draft, given the total variation
    of the two distributions it was drawn from and held against."""
    params = SamplingParams(**settings, seed=8)
    target_table, draft_table = random_table(12, seed=3, scale=1.5), random_table(12, seed=4, scale=1.5)
    target = FakeModel(target_table, 12, capacity=2000)
    drafter = SmallModel(
        FakeModel(lambda text: 0.7 * target_table(text) + 0.5 * draft_table(text), 12, capacity=2000), 12
    )
    assert isinstance(drafter.model, FakeModel)
    context, stats = [1, 2, 3], Stats()
    loop = speculative(target, fixed(drafter, 1), context, params, stop=(), budget=1200, stats=stats)
    difference = variance = 0.0
    length = len(context)
    for tokens in loop:
        if stats.rounds[-1].proposed:
            text = tuple(context[:length])
            chance = hoped(total_variation(target_table(text), drafter.model.table(text), params))
            difference += stats.rounds[-1].accepted - chance
            variance += chance * (1 - chance)
        length += len(tokens)
    return difference / variance**0.5


@pytest.mark.parametrize("settings", [PLAIN, {"temperature": 1.5, "top_k": 5}], ids=["plain", "top_k"])
def test_acceptance_is_the_overlap_for_rejection_and_no_more_for_coupling(settings: dict[str, Any]) -> None:
    """Rejection: 1 - tv exactly. Coupling: between (1 - tv) / (1 + tv) and 1 - tv (Daliri et al. 2024)."""
    assert abs(surplus(settings | REJECTION, lambda tv: 1 - tv)) < 4
    assert surplus(settings, lambda tv: 1 - tv) < -2
    assert surplus(settings, lambda tv: (1 - tv) / (1 + tv)) > -4
