"""Plain decoding: one token per forward. It is the oracle: every other way to decode is compared with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from edgespec.decode.constraint import masked
from edgespec.protocols import Constraint, Model
from edgespec.sampling import choose
from edgespec.sampling_params import SamplingParams
from edgespec.types import Draft


def autoregressive(
    target: Model,
    context: list[int],
    params: SamplingParams,
    *,
    stop: Collection[int],
    budget: int,
    constraint: Constraint | None = None,
) -> Iterator[list[int]]:
    """Extend ``context`` by up to ``budget`` tokens. Yields lists of one token each, and ends after a stop token."""
    target.prefill(context[:-1])
    for _ in range(min(budget, target.cache.capacity - len(context) + 1)):
        step = target.forward([context[-1]])
        token = choose(masked(step.logits, Draft(), constraint)[0], context, params)
        context.append(token)
        if constraint is not None:
            constraint.commit([token])
        yield [token]
        if token in stop:
            return
