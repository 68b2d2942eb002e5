"""Adaptive tokens (SDSAT, arXiv 2403.18647): placeholders behind the last token, at which the target itself guesses.

The target was trained for it (``edgespec train sdsat``, or a user's own). A round is a forward over the last committed
token, the draft, and placeholders (``Draft.extra``). The logits of the placeholders' rows are the next round's draft.
They know the whole draft of their own round, so they are of use only if all of it was accepted.

*Two-step*, as in the paper: a forward drafts or verifies. *One-forward*: each forward does both. It costs more rows,
and saves the drafting forward after each draft that is accepted as a whole. In two-step rounds, rows that would be
padding carry placeholders too: they cost nothing.

The paper samples every path of a tree anew and keeps the longest match, which changes the distribution. Here a draft is
verified like any other, so greedy and sampled texts are those of plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.drafters.token_choice import TokenChoice
from edgespec.errors import SettingError
from edgespec.protocols import Drafter
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, DraftNote, Needs, Step, Verdict


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
        self._forget()

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        self._choice.begin(params)
        self._forget()

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
        whole = draft.tree is None and len(verdict.tokens) == len(draft) + 1
        if whole and draft.extra and draft.extra == self._placeholders[: len(draft.extra)]:
            first = 1 + len(draft)
            self._guesses = step.logits[first : first + len(draft.extra)].copy()
            self._length = len(context)

    def reset(self) -> None:
        self._forget()

    def _behind(self, drafted: int, k: int) -> int:
        """How many placeholders follow a draft."""
        if self._one_forward or not drafted:
            return k
        rows = 1 + drafted
        return min(k, -(-max(rows, self._least) // self._step) * self._step - rows)

    def _forget(self) -> None:
        self._guesses = np.zeros((0, 0), np.float32)
        self._length = 0
