"""Two drafters in turn: the second is asked when the first has nothing to say.

Prompt lookup goes first: where the text repeats itself a copy is free and often right. Elsewhere the model drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.drafters.base import Drafter
from edgespec.types import Draft, SamplingParams, Step, Verdict


class Fallback:
    """Both see every round, so either can take the next one."""

    def __init__(self, first: Drafter, then: Drafter) -> None:
        self.name = f"{first.name}+{then.name}"
        self.first = first
        self.then = then

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        self.first.begin(context, params)
        self.then.begin(context, params)

    def propose(self, context: Sequence[int], k: int) -> Draft:
        draft = self.first.propose(context, k)
        return draft if len(draft) else self.then.propose(context, k)

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        self.first.commit(context, draft, verdict, step)
        self.then.commit(context, draft, verdict, step)

    def reset(self) -> None:
        self.first.reset()
        self.then.reset()
