"""Constrained decoding: a constraint says which tokens may come next, and all others get the logit ``-inf``.

The mask is applied before anything else reads the logits. Repetition penalty and bias change each logit separately, so
the mask could also come after them. Top-k, top-p and min-p compare tokens with each other, so they must see allowed
tokens only.

Plain decoding and speculation ask the same pure function of the text which tokens are allowed. Both then choose from
the same masked logits. So decoding with a constraint stays exact.
"""

from __future__ import annotations

import numpy as np

from edgespec.protocols import Constraint
from edgespec.types import Draft, Logits


def masked(logits: Logits, draft: Draft, constraint: Constraint | None) -> Logits:
    """The target's logits for a draft, with ``-inf`` where the constraint forbids. The input itself, if it forbids
    nothing.

    logits: ``(1 + n, vocab)``; row 0 follows the committed text, row 1 + i follows draft token i.
    """
    if constraint is None:
        return logits
    paths: list[tuple[int, ...]] = [()]  # for each row: the draft tokens that lead to it
    for index, token in enumerate(draft.tokens):
        paths.append((*paths[index if draft.tree is None else draft.tree[index]], token))
    masks = [constraint.allowed(path) for path in paths]
    bound = [row for row, mask in enumerate(masks) if not mask.all()]
    if not bound:  # a constraint on how a text begins is over, and a copy of all logits takes as long as a small layer
        return logits
    out: Logits = logits.copy()
    for row in bound:
        np.copyto(out[row], -np.inf, where=~masks[row])
    return out
