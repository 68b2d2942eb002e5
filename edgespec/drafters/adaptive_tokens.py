"""Adaptive tokens (SDSAT, arXiv 2403.18647): placeholders behind the last token, at which the target itself guesses.

The target was trained for it (``edgespec train sdsat``, or a user's own). A round is a forward over the last committed
token, the draft, and placeholders (``Draft.extra``). The logits of the placeholders' rows are the next round's draft.
They know the whole draft of their own round, so they are of use only if all of it was accepted.

*Two-step*, as in the paper: a forward drafts or verifies. *One-forward*: each forward does both. It costs more rows,
and saves the drafting forward after each draft that is accepted as a whole. In two-step rounds, rows that would be
padding carry placeholders too: they cost nothing.

Guesses in hand are worth what the text's rounds have earned above one token a forward. A draft that spends them has to
promise as much, by the probabilities of its guesses, scaled by how often such have come true in this text. Else this
forward drafts anew, and loses nothing.

The paper samples every path of a tree anew and keeps the longest match, which changes the distribution. Here a draft is
verified like any other, so greedy and sampled texts are those of plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgespec.drafters.token_choice import TokenChoice
from edgespec.errors import SettingError
from edgespec.protocols import Drafter
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, DraftNote, Needs, Step, Verdict


def worth_spending(chances: NDArray[np.floating], in_hand: float, *, one_forward: bool) -> NDArray[np.intp]:
    """``(..)`` how many of some guesses to draft. In one-forward rounds guesses are lost where a draft is wrong, in
    two-step rounds in any case.

    chances: ``(.., k)`` that each is right if those before it are. in_hand: tokens that guesses are worth.

    >>> worth_spending(np.array([[0.9, 0.3], [0.2, 0.9]]), 0.5, one_forward=True)
    array([1, 0])
    >>> worth_spending(np.array([[0.9, 0.3], [0.2, 0.9]]), 0.5, one_forward=False)
    array([2, 0])
    """
    if one_forward:
        return np.logical_and.accumulate(chances >= (1 - chances) * in_hand, axis=-1).sum(-1)
    return np.where(np.cumprod(chances, -1).sum(-1) >= in_hand, chances.shape[-1], 0)


class AdaptiveTokens(Drafter):
    """tokens: ids of the placeholders, in their order; the last one is repeated. count: most of them behind a token.

    one_forward: see above. least, step: the target's forwards have at least so many rows, and a multiple of these.

    >>> drafter = AdaptiveTokens([9], vocab_size=8, count=2)
    >>> drafter.begin([1, 2], SamplingParams())
    >>> drafter.propose([1, 2], 2).extra  # nothing is known yet: this forward drafts
    (9, 9)
    >>> says = np.eye(8, dtype=np.float32)[[3, 4, 5]]  # behind 2 comes 3, and the placeholders guess 4 and 5
    >>> drafter.commit([1, 2, 3], Draft(extra=(9, 9)), Verdict(0, (3,), (0,)), Step(says))
    >>> drafter.propose([1, 2, 3], 2).tokens
    (4, 5)
    """

    def __init__(
        self,
        tokens: Sequence[int],
        vocab_size: int,
        *,
        count: int,
        one_forward: bool = False,
        least: int = 1,
        step: int = 1,
        name: str = "adaptive",
    ) -> None:
        if not tokens or count < 1:
            raise SettingError("adaptive tokens", got=f"{len(tokens)} ids, {count} behind a token", allowed="1 or more")
        self.name = name
        self.needs = Needs(extra=count)
        self._placeholders = (*tokens, *[tokens[-1]] * (count - len(tokens)))[:count]
        self._one_forward = one_forward
        self._least, self._step = least, step
        self._choice = TokenChoice(np.arange(vocab_size), vocab_size, name=name)
        self._forget_text()

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        self._choice.begin(params)
        self._forget_text()

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        """Tokens that a constraint forces after what is committed take the places of the first guesses."""
        if k <= 0:
            return Draft(note=DraftNote(reason="none asked for"))
        known = self._guesses[len(context) - self._length :] if len(context) >= self._length else ()
        draft = Draft(note=DraftNote(reason="this forward drafts"))
        if len(known):
            draft = self._choice.draft(
                lambda drafted: known[len(drafted)] if len(drafted) < len(known) else None,
                *(context, k, lambda scores: True, allowed),
            )
            draft = draft.first(self._worth_a_try(draft))
        return Draft(
            draft.tokens,
            kind=draft.kind,
            probs=draft.probs,
            scores=draft.scores,
            extra=self._placeholders[: self._behind(len(draft), k)],
            note=draft.note,
        )

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        self._forget()
        self._committed += len(verdict.tokens)
        self._forwards += 1
        self._promised += float(np.cumprod(draft.scores).sum())
        self._accepted += verdict.accepted
        whole = draft.tree is None and len(verdict.tokens) == len(draft) + 1
        if whole and draft.extra and draft.extra == self._placeholders[: len(draft.extra)]:
            first = 1 + len(draft)
            self._guesses = step.logits[first : first + len(draft.extra)].copy()
            self._length = len(context)

    def reset(self) -> None:
        self._forget_text()

    def _worth_a_try(self, draft: Draft) -> int:
        """How many of its tokens."""
        if draft.kind == "sampled" and not self._one_forward:
            # Whether a drawn token is proposed must not depend on it. Penalties make the scores behind it do so.
            return len(draft)
        chances = np.minimum(1.0, np.array(draft.scores) * (1 + self._accepted) / (1 + self._promised))
        return int(worth_spending(chances, self._committed / self._forwards - 1, one_forward=self._one_forward))

    def _behind(self, drafted: int, k: int) -> int:
        """How many placeholders follow a draft."""
        if self._one_forward or not drafted:
            return k
        rows = 1 + drafted
        return min(k, -(-max(rows, self._least) // self._step) * self._step - rows)

    def _forget(self) -> None:
        self._guesses = np.zeros((0, 0), np.float32)
        self._length = 0

    def _forget_text(self) -> None:
        self._committed = self._forwards = self._accepted = 0
        self._promised = 0.0
        self._forget()
