"""The rule that accepts draft tokens. Pure functions on logits.

*Matching* is one rule for greedy decoding and coupled sampling. At each position the target chooses its own token: the
argmax, or a draw with the noise of that position. It goes on while the draft has the same token. So each committed
token is the one that plain decoding would have chosen from the same logits. This holds with any drafter, any k and any
schedule, and without a drafter. Matching is lossless for sampled drafts too, since the target's draw never looks at the
draft.

Acceptance is high because drafter and target share their noise. It is at least (1 - tv) / (1 + tv), where tv is the
total variation distance of the two distributions (Daliri et al. 2024, arXiv 2408.07978).

*Rejection* (Leviathan et al. 2022, arXiv 2211.17192, algorithm 1; Chen et al. 2023, arXiv 2302.01318, theorem 1)
accepts the draft's token with probability min(1, target / draft). Otherwise it draws from the normalised positive part
of target - draft. A committed token has the target's distribution, whatever the draft's distribution is. A token is
accepted with probability 1 - tv, the maximum for any lossless rule.

Siblings are tried one by one. After a miss, the residual becomes the target distribution for the next sibling
(SpecInfer, arXiv 2305.09781). The draft's distribution loses the rejected token (recursive rejection sampling without
replacement: Jeon et al. 2024, arXiv 2402.14160).

A deterministic draft is matched under both settings. Its distribution is a point. Rejection would accept its token with
the target's probability of it, and otherwise draw one of the other tokens. Drawing and comparing does the same. So
rejection with lookups, or without drafts, gives the tokens of plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.errors import SettingError
from edgespec.protocols import Model
from edgespec.sampling import ACCEPT, CORRECT, adjust, choose, distribution, nothing_left, pick, uniform
from edgespec.sampling_params import SamplingParams
from edgespec.types import Distribution, Draft, Logits, Verdict

_WHOLE = (int, np.integer)


def check_proposed(draft: object, drafter: str, vocab_size: int) -> None:
    """Raises SettingError for what is no draft of this vocabulary, before a constraint reads it. The message names the
    drafter."""
    wrong = None
    if not isinstance(draft, Draft):
        wrong = type(draft).__name__, "a Draft: edgespec.types.Draft(tokens)"
    elif not (isinstance(draft.tokens, tuple) and isinstance(draft.extra, tuple)):
        wrong = "tokens that are no tuple", "a tuple of token ids"
    elif draft.scores and len(draft.scores) != len(draft):
        wrong = f"{len(draft.scores)} scores of {len(draft)} tokens", "one of each, or none"
    elif draft.tree is not None and not _is_tree(draft.tree, len(draft)):
        wrong = (
            f"the tree {draft.tree} of {len(draft)} tokens",
            "the row of each token's parent, which stands before it",
        )
    elif odd := [token for token in draft.tokens if not isinstance(token, _WHOLE)]:
        wrong = f"token {odd[0]!r}", "whole numbers"
    elif unknown := [token for token in draft.tokens if not 0 <= token < vocab_size]:
        wrong = f"token {unknown[0]}", f"0 to {vocab_size - 1}"
    if wrong:
        raise _refused(drafter, *wrong)


def check_draft(draft: Draft, drafter: str, target: Model) -> None:
    """Raises SettingError for a draft that ``target`` cannot verify."""
    wrong = None
    if draft.tree is not None and not target.capabilities.tree:
        wrong = "a tree", "a chain: this target verifies no trees"
    elif len(draft.rows) >= target.free_width:
        wrong = f"{len(draft.rows)} tokens", f"up to {target.free_width - 1}"
    if wrong:
        raise _refused(drafter, *wrong)


def verify(draft: Draft, logits: Logits, context: Sequence[int], params: SamplingParams) -> Verdict:
    """Walk the draft from its root. ``params`` and ``draft.kind`` select the rule.

    logits: ``(1 + n, vocab)``; row 0 follows the last committed token, row 1 + i follows draft token i.
    context: all committed tokens. The chosen tokens get the positions ``len(context)``, ``len(context) + 1``, ...

    >>> says = np.eye(10, dtype=np.float32)[[4, 5, 9]]       # the target says 4, then 5, then 9
    >>> verify(Draft((4, 6)), says, [1, 2, 3], SamplingParams())
    Verdict(accepted=1, tokens=(4, 5), path=(0, 1))
    >>> verify(Draft((3, 4), tree=(0, 0)), np.eye(10, dtype=np.float32)[[4, 0, 7]], [1], SamplingParams())
    Verdict(accepted=1, tokens=(4, 7), path=(0, 2))
    """
    rejection = params.rejects and draft.kind == "sampled"
    text = list(context) if params.repetition_penalty != 1.0 else None
    children = _children(draft)
    tokens: list[int] = []
    path = [0]
    while True:
        row = path[-1]
        position = len(context) + len(tokens)
        siblings = children[row]
        if rejection and siblings:
            assert params.seed is not None
            target = distribution(adjust(logits[row], text or (), params), params)
            if not len(target.ids):
                raise nothing_left()
            given = draft.probs[siblings[0] - 1]
            assert all(draft.probs[child - 1] is given for child in siblings), "siblings of several distributions"
            token = reject(target, given, [draft.tokens[child - 1] for child in siblings], params.seed, position)
        else:
            token = choose(logits[row], text or (), params, position)
        tokens.append(token)
        child = next((child for child in siblings if draft.tokens[child - 1] == token), None)
        if child is None:
            return Verdict(accepted=len(tokens) - 1, tokens=tuple(tokens), path=tuple(path))
        path.append(child)
        if text is not None:
            text.append(token)


def reject(target: Distribution, draft: Distribution, siblings: Sequence[int], seed: int, position: int) -> int:
    """The committed token of one position: the first sibling that is accepted, else a correction.

    siblings: drawn from ``draft`` in this order, without replacement. The correction is never one of them. A rejected
        token had less probability in ``target`` than in ``draft``, so the residual gives it none.
    """
    for number, token in enumerate(siblings):
        target_prob, draft_prob = target.of(token), draft.of(token)
        assert draft_prob > 0, "a draft token that its own distribution does not hold"
        if target_prob >= draft_prob or uniform(seed, ACCEPT, position, number) < target_prob / draft_prob:
            return token
        target = residual(target, draft)
        draft = without(draft, token)
    return pick(target, uniform(seed, CORRECT, position))


def residual(target: Distribution, draft: Distribution) -> Distribution:
    """The normalised positive part of target - draft: the distribution to draw from after a miss.

    target: its ids are in ascending order.

    >>> residual(
    ...     Distribution(np.array([1, 2, 3]), np.array([.5, .25, .25])),
    ...     Distribution(np.array([3, 9]), np.array([.5, .5])),
    ... ).probs.round(3)
    array([0.667, 0.333, 0.   ])
    """
    place = np.searchsorted(target.ids, draft.ids).clip(max=len(target.ids) - 1)
    shared = target.ids[place] == draft.ids
    left = target.probs.copy()
    left[place[shared]] -= draft.probs[shared]
    left = left.clip(min=0.0)
    mass = left.sum()
    # The mass is 0 only if the two are equal up to rounding. Then the target takes the place of its residual.
    return Distribution(target.ids, left / mass) if mass > 0 else target


def without(draft: Distribution, token: int) -> Distribution:
    """``draft`` on the condition that it is not ``token``; empty if no other token is possible.

    >>> without(Distribution(np.array([3, 7, 9]), np.array([.5, .25, .25])), 3).probs
    array([0.5, 0.5])
    """
    others = draft.ids != token
    probs = draft.probs[others]
    mass = probs.sum()  # not 1 - the token's probability: that loses digits if the probability is nearly 1
    return Distribution(draft.ids[others], probs / mass if mass > 0 else probs)


def _is_tree(tree: Sequence[int], size: int) -> bool:
    return len(tree) == size and all(0 <= parent <= index for index, parent in enumerate(tree))


def _refused(drafter: str, got: str, allowed: str) -> SettingError:
    return SettingError(f"drafter {drafter} proposes what cannot be verified", got=got, allowed=allowed)


def _children(draft: Draft) -> list[list[int]]:
    """For each row of the forward: the rows of its children, in order."""
    children: list[list[int]] = [[] for _ in range(len(draft) + 1)]
    for index in range(len(draft)):
        children[index if draft.tree is None else draft.tree[index]].append(index + 1)
    return children
