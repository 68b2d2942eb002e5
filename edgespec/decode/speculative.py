"""The decoding loop, speculative (Leviathan et al. 2022, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318).

A drafter proposes tokens. The target evaluates all of them in one forward. The tokens it agrees with are committed,
together with one token of its own. The loop depends on no drafter, backend or device.

Invariant: between rounds the target's KV cache holds every committed token except the last. A round does all its work
before its ``yield``. So a consumer that abandons the loop leaves the caches of target and draft model correct.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from edgespec.decode.constraint import masked
from edgespec.decode.forced_tokens import draft_under_constraint
from edgespec.decode.logprobs import Logprobs
from edgespec.decode.verify import check_draft, verify
from edgespec.protocols import Constraint, Model, Policy, Progress
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Round


def speculative(
    target: Model,
    policy: Policy,
    context: list[int],
    params: SamplingParams,
    *,
    stop: Collection[int],
    budget: int,
    stats: Stats,
    progress: Progress | None = None,
    constraint: Constraint | None = None,
    logprobs: Logprobs | None = None,
) -> Iterator[list[int]]:
    """Extend ``context`` in place by up to ``budget`` tokens. Yields the committed tokens of each round.

    Ends after a token of ``stop``, at the budget, or when the target's context is full.
    constraint: says which tokens may be written. Each generation needs a new one.
    logprobs: gets those of each committed token.
    """
    clock, began = stats.clock, stats.clock()
    stats.prompt_tokens, stats.plain_width = len(context), target.capabilities.min_width
    reserve = 1 + policy.longest
    stats.reused_tokens = target.prefill(context[:-1], reserve=reserve, progress=progress, observe=policy.observe)
    policy.begin(context, params)
    stats.prefill_s = clock() - began
    budget_left = min(budget, target.cache.capacity - len(context) + 1)

    while budget_left > 0:
        t0 = clock()
        room = min(budget_left, target.free_width) - 1
        draft = draft_under_constraint(policy, context, room, stop, constraint, target.vocab_size)
        t1 = clock()
        check_draft(draft, policy.name, target)
        width = policy.width(1 + len(draft.rows), len(context))
        step = target.forward([context[-1], *draft.rows], draft.tree_of_rows, width=width)  # logits (1 + n, vocab)
        t2 = clock()
        verdict = verify(draft, masked(step.logits, draft, constraint), context, params).until(stop, budget_left)
        target.cache.keep(verdict.path)
        context.extend(verdict.tokens)
        if constraint is not None:
            constraint.commit(verdict.tokens)
        if logprobs is not None:
            logprobs.commit(verdict, step.logits)
        policy.commit(context, draft, verdict, step)
        if step.hidden:
            policy.observe(*step.kept(context, verdict))
        budget_left -= len(verdict.tokens)
        stats.rounds.append(Round.of(policy.name, draft, verdict, step, t0, t1, t2, clock()))
        policy.update(stats.rounds[-1])
        yield list(verdict.tokens)
        if verdict.tokens[-1] in stop:
            return
