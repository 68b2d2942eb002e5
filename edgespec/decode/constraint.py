"""Constrained decoding: a constraint says which tokens may come next, and all others lose their logits.

The mask is put on before anything else reads the logits. Repetition penalty and bias work on each logit alone, so it
would be the same behind them; top-k, top-p and min-p weigh tokens against each other, and must weigh allowed ones only.

Plain decoding and speculation ask one pure function of the text which tokens may follow, and choose from the same
masked logits. So a constraint takes nothing from exactness.
"""

from __future__ import annotations

import numpy as np

from edgespec.protocols import Constraint
from edgespec.types import Draft, Logits


def masked(logits: Logits, draft: Draft, constraint: Constraint | None) -> Logits:
    """The target's logits for a draft, ``-inf`` for what the constraint forbids; the input itself without one.

    logits: ``(1 + n, vocab)``; row 0 follows the committed text, row 1 + i follows draft token i.
    """
    if constraint is None:
        return logits
    out = np.full_like(logits, -np.inf)
    paths: list[tuple[int, ...]] = [()]  # of each row, the draft tokens that lead to it
    for index, token in enumerate(draft.tokens):
        paths.append((*paths[index if draft.tree is None else draft.tree[index]], token))
    for row, path in enumerate(paths):
        np.copyto(out[row], logits[row], where=constraint.allowed(path))
    return out
