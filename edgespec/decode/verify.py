"""Verification: what the target makes of a draft. Pure functions on logits.

Greedy and coupled sampling are one rule: at each position the target chooses its own token (argmax, or the draw
with the noise of that position) and goes on while the draft has that token. What is committed is therefore, token
by token, what plain decoding with the same logits would have chosen: with any drafter, any k, any schedule, and
with none. This is lossless for sampled drafts too, since the target's draw never looks at the draft (it is the
"sample and match" rule; acceptance is high because drafter and target share their noise).
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.decode.sampling import choose
from edgespec.types import Draft, Logits, SamplingParams, Verdict


def verify(draft: Draft, logits: Logits, context: Sequence[int], params: SamplingParams) -> Verdict:
    """Walk the draft with the target's own choices.

    logits: ``(1 + n, vocab)``; row 0 follows the last committed token, row 1 + i follows draft token i.
    context: all committed tokens; the chosen ones get positions ``len(context)``, ``len(context) + 1``, ...

    >>> import numpy as np
    >>> says = np.eye(10, dtype=np.float32)[[4, 5, 9]]       # the target says 4, then 5, then 9
    >>> verify(Draft((4, 6)), says, [1, 2, 3], SamplingParams())
    Verdict(accepted=1, tokens=(4, 5), path=(0, 1))
    >>> verify(Draft((3, 4), tree=(0, 0)), np.eye(10, dtype=np.float32)[[4, 0, 7]], [1], SamplingParams())
    Verdict(accepted=1, tokens=(4, 7), path=(0, 2))
    """
    text = list(context) if params.repetition_penalty != 1.0 else None
    children = _children(draft)
    tokens: list[int] = []
    path = [0]
    while True:
        row = path[-1]
        token = choose(logits[row], text or (), params, position=len(context) + len(tokens))
        tokens.append(token)
        child = children[row].get(token)
        if child is None:
            return Verdict(accepted=len(tokens) - 1, tokens=tuple(tokens), path=tuple(path))
        path.append(child)
        if text is not None:
            text.append(token)


def _children(draft: Draft) -> list[dict[int, int]]:
    """For each row of the forward: token -> row of the child that holds it."""
    children: list[dict[int, int]] = [{} for _ in range(len(draft) + 1)]
    for index, token in enumerate(draft.tokens):
        parent = index if draft.tree is None else draft.tree[index]
        children[parent].setdefault(token, index + 1)
    return children
