"""What to verify under a constraint: forced tokens first, then draft tokens that the constraint allows.

A token is *forced* where a constraint allows no other token. It is known without a drafter. A run of forced tokens is
verified in front of the draft. It costs only a wider forward. All of it is accepted, since the target can choose
nothing else.

SGLang (arXiv 2312.07104) calls this jump-forward, and llguidance calls it fast-forward. They append the tokens without
verifying them. Here forced tokens are verified like any draft. The target has to read them anyway, and there is no
second rule that could differ from the mask.

A draft token that the constraint forbids cannot be accepted. It is cut, together with all its descendants. Drafters are
told which tokens are allowed, so a drafter that chooses among tokens chooses an allowed one. A drafter that draws with
its own noise must do so. If a cut depended on the token drawn, it would change the distribution of the committed
tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from edgespec.decode.verify import check_proposed
from edgespec.protocols import Constraint, Policy
from edgespec.types import Distribution, Draft

_LONGEST_RUN = 16
"""most forced tokens in a round. Each adds a row of logits, and forwards of a width that ran before cost least."""


def draft_under_constraint(
    policy: Policy,
    context: Sequence[int],
    limit: int,
    stop: Collection[int],
    constraint: Constraint | None,
    vocab_size: int,
) -> Draft:
    """At most ``limit`` tokens to verify: forced tokens, then drafted ones. Nothing is drafted after a forced stop
    token. Raises SettingError for what is no draft."""
    if constraint is None:
        draft = policy.draft(context, limit)
        check_proposed(draft, policy.name, vocab_size)
        return draft
    forced = forced_run(constraint, min(limit, _LONGEST_RUN))
    left = 0 if forced and forced[-1] in stop else limit - len(forced)
    allowed = lambda drafted: constraint.allowed([*forced, *drafted])  # noqa: E731
    draft = policy.draft([*context, *forced], left, len(forced), allowed)
    check_proposed(draft, policy.name, vocab_size)
    return cut_forbidden(forced, draft, constraint)


def forced_run(constraint: Constraint, most: int) -> list[int]:
    """Up to ``most`` tokens that must come next. Each is the only token allowed after the ones before it."""
    run: list[int] = []
    while len(run) < most:
        allowed = constraint.allowed(run)
        if np.count_nonzero(allowed) != 1:
            break
        token = int(allowed.argmax())
        if not constraint.allowed([*run, token]).any():
            break
        run.append(token)
    return run


def cut_forbidden(forced: Sequence[int], draft: Draft, constraint: Constraint) -> Draft:
    """The forced tokens, then ``draft`` without the tokens that are forbidden or lead to a dead end.

    Example: the forced tokens are ``(7, 8)``. The draft is ``(4, 5, 6)`` with the tree ``(0, 0, 2)``, and 4 is
    forbidden. The result has the tokens ``(7, 8, 5, 6)`` and the tree ``(0, 1, 2, 3)``.
    """
    tokens = list(forced)
    tree = list(range(len(forced)))
    sampled = draft.kind == "sampled"
    kept: list[int] = []
    rows = {0: len(forced)}  # for each token that is kept: its row in the draft -> its row in the result
    paths = {0: tuple(forced)}
    for index, token in enumerate(draft.tokens):
        parent = index if draft.tree is None else draft.tree[index]
        if parent not in rows or not constraint.allowed(paths[parent])[token]:
            assert not sampled, "a drawn token must be drawn from what is allowed"
            continue
        path = (*paths[parent], token)
        if sampled or constraint.allowed(path).any():
            kept.append(index)
            tokens.append(token)
            tree.append(rows[parent])
            rows[index + 1], paths[index + 1] = len(tokens), path
    probs = [Distribution(np.array([token]), np.ones(1)) for token in forced] + [
        draft.probs[i] for i in kept if sampled
    ]
    return replace(
        draft,
        tokens=tuple(tokens),
        tree=None if draft.tree is None else tuple(tree),
        probs=tuple(probs) if sampled else (),
        scores=(1.0,) * len(forced) + tuple(draft.scores[i] for i in kept) if draft.scores else (),
        alternatives=(),
    ).noted(forced=len(forced), cut=len(draft) - len(kept))
