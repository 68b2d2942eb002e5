"""What to verify under a constraint: forced tokens in front, and nothing that the constraint forbids.

Where a constraint allows one token only, that token is known without a drafter. A run of such *forced* tokens joins
the draft for no more than a wider forward, and is accepted whole, since the target may choose nothing else there.
(SGLang, arXiv 2312.07104, calls this jump-forward and llguidance fast-forward; there the tokens are appended unseen.
Here they are verified like any draft: the target has to read them anyway, and there is no rule that could differ from
the mask.)

A drafter's token that the constraint forbids cannot be accepted: it is cut, with all that hangs on it. Drafters are
told what is allowed, so that those that choose among tokens choose among allowed ones. One that draws with noise of its
own has to: a cut that depends on what was drawn would bend the distribution of what is committed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from edgespec.protocols import Constraint, Policy
from edgespec.types import Distribution, Draft

_LONGEST_RUN = 16
"""forced tokens in a round: each is a row of logits, and rounds of a width seen before cost least"""


def draft_under_constraint(
    policy: Policy, context: Sequence[int], limit: int, stop: Collection[int], constraint: Constraint | None
) -> Draft:
    """At most ``limit`` tokens to verify: forced ones, then drafted ones; none behind a forced stop token."""
    if constraint is None:
        return policy.draft(context, limit)
    forced = forced_run(constraint, min(limit, _LONGEST_RUN))
    left = 0 if forced and forced[-1] in stop else limit - len(forced)
    allowed = lambda drafted: constraint.allowed([*forced, *drafted])  # noqa: E731
    return cut_forbidden(forced, policy.draft([*context, *forced], left, len(forced), allowed), constraint)


def forced_run(constraint: Constraint, most: int) -> list[int]:
    """The tokens that must come next, up to ``most``: each the only one allowed after those before it."""
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
    """``draft`` behind the forced tokens, without tokens that are forbidden or lead to a dead end.

    Forced ``(7, 8)`` and a draft ``(4, 5, 6)`` with the tree ``(0, 0, 2)``, of which 4 is forbidden, give the tokens
    ``(7, 8, 5, 6)`` with the tree ``(0, 1, 2, 3)``.
    """
    tokens = list(forced)
    tree = list(range(len(forced)))
    sampled = draft.kind == "sampled"
    kept: list[int] = []
    rows = {0: len(forced)}  # of those that stay: the drafter's row -> its row in what is verified
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
