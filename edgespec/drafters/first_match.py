"""Several drafters as one: the first that finds a draft drafts. For a fixed k, where no costs are measured.

Lookups are asked first, in order of trust, since they cost no forward. The draft model is asked last. With measured
costs, the arbiter decides instead (``adaptive.arbiter``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

from edgespec.protocols import Drafter, StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, DraftNote, Hidden, Needs, Step, Verdict


class FirstMatch(Drafter):
    """The first of ``lookups`` that finds something drafts. If none does, ``last`` drafts.

    >>> from edgespec.drafters.ngram import NGram
    >>> drafter = FirstMatch([NGram(longest=3, shortest=3), NGram(longest=2)])
    >>> drafter.begin([1, 2, 9, 7, 2, 9], SamplingParams())
    >>> drafter.propose([1, 2, 9, 7, 2, 9], 2).tokens
    (7, 2)
    """

    def __init__(self, lookups: Sequence[Drafter], last: StepwiseDrafter | None = None) -> None:
        self.lookups, self.last = lookups, last
        self._all: list[Drafter] = [*lookups, *([last] if last is not None else [])]
        self._asked = list(lookups)
        self.name = "+".join(drafter.name for drafter in self._all)
        self.uses_history = any(drafter.uses_history for drafter in self._all)
        self.model = last.model if last is not None else None
        self.needs = reduce(or_, (drafter.needs for drafter in self._all), Needs())

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        for drafter in self.lookups:
            drafter.begin(context, params)
        self._asked = list(self.lookups)
        if self.last is not None:
            # Under rejection the text depends on what the model was asked to draft, and on the last digits of its
            # logits. These depend on how it read the context. Neither may depend on earlier texts.
            if params.rejects:
                self._asked = [drafter for drafter in self.lookups if not drafter.uses_history]
            self.last.begin(context, params, read=params.rejects)

    def read_as(self, anchor: int, tokens: Sequence[int]) -> None:
        for drafter in self._all:
            drafter.read_as(anchor, tokens)

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        if k == 0:
            return Draft(note=DraftNote(reason="none asked for"))
        for drafter in self._asked:
            draft = drafter.propose(context, k, allowed).within(allowed)
            if len(draft):
                return draft.noted(by=drafter.name)
        if self.last is None:
            return Draft(note=DraftNote(reason="nothing to copy"))
        return self.last.propose(context, k, allowed).noted(by=self.last.name)

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        for drafter in self._all:
            drafter.commit(context, draft, verdict, step)

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        for drafter in self._all:
            drafter.observe(start, tokens, hidden)

    def reset(self) -> None:
        for drafter in self._all:
            drafter.reset()
