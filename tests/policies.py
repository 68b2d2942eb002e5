"""Policies for tests: any drafter, and the drafters of an arbiter, at a length of the test's choice."""

from __future__ import annotations

from edgespec.adaptive.arbiter import Arbiter
from edgespec.decode.policy import FixedLength, Heuristic
from edgespec.drafters.first_match import FirstMatch
from edgespec.protocols import Drafter, Policy


def fixed(drafter: Drafter | Arbiter, k: int) -> FixedLength:
    """k tokens every round; of an arbiter, by its drafters in their order."""
    return FixedLength(first_match(drafter) if isinstance(drafter, Arbiter) else drafter, k)


def own_length(drafter: Drafter | Arbiter) -> Policy:
    """As far as it decides itself; a drafter that does not decide goes by the rule of thumb."""
    return drafter if isinstance(drafter, Arbiter) else Heuristic(drafter)


def first_match(arbiter: Arbiter) -> FirstMatch:
    return FirstMatch([candidate.drafter for candidate in arbiter._free], arbiter.model)
