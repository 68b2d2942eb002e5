"""Policies that need no measured costs: draft nothing, draft k tokens every round, or follow a rule of thumb.

The arbiter (adaptive.arbiter) is the policy that decides from measured costs which drafter drafts, and how far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgespec.protocols import Drafter, WidthPolicy
from edgespec.sampling_params import SamplingParams, require_whole
from edgespec.types import Allowed, Draft, Hidden, Round, Step, Verdict


class Plain:
    """Drafts nothing: the speculative loop becomes plain decoding."""

    name = "none"
    longest = 0

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        pass

    def draft(self, context: Sequence[int], limit: int, forced: int = 0, allowed: Allowed | None = None) -> Draft:
        return Draft()

    def width(self, tokens: int, context_length: int) -> int:
        return tokens

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        pass

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        pass

    def update(self, round_: Round) -> None:
        pass


class FixedLength:
    """Drafts k tokens with one drafter every round.

    widths: decides the width of each forward. Without it, or with k = 0, this policy pads no forward.
    """

    def __init__(self, drafter: Drafter, k: int, widths: WidthPolicy | None = None) -> None:
        self.name = drafter.name
        self.k = k = require_whole("num_draft_tokens", k, 0, what="number of draft tokens")
        self.longest = k + drafter.needs.extra
        self._drafter = drafter
        self._widths = widths if k else None
        self._context_length = 0

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        self._drafter.begin(context, params)
        if self._widths is not None:
            self._widths.begin()

    def draft(self, context: Sequence[int], limit: int, forced: int = 0, allowed: Allowed | None = None) -> Draft:
        self._context_length = len(context)
        draft = self._drafter.propose(context, min(self.k, limit), allowed)
        if isinstance(draft, Draft) and draft.extra:  # the loop refuses what is no draft
            return replace(draft, extra=draft.extra[: limit - len(draft)])
        return draft

    def width(self, tokens: int, context_length: int) -> int:
        return tokens if self._widths is None else self._widths.width(tokens, context_length)

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        self._drafter.commit(context, draft, verdict, step)

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        self._drafter.observe(start, tokens, hidden)

    def update(self, round_: Round) -> None:
        if self._widths is not None:
            seconds = None if round_.read else round_.target_s
            self._widths.update(round_.tokens, self._context_length, round_.width, seconds)


class Heuristic(FixedLength):
    """The rule of transformers' assisted generation: two more after a fully accepted draft, one less after a miss.

    k never falls below 1. The rule changes k only after a round with a draft, so it would never leave 0.
    """

    def __init__(self, drafter: Drafter, k: int = 4, longest: int = 16) -> None:
        super().__init__(drafter, k)
        self._most = longest
        self.longest = longest + drafter.needs.extra

    def update(self, round_: Round) -> None:
        if round_.proposed == 0:
            return
        if round_.accepted == round_.proposed:
            self.k = min(self.k + 2, self._most)
        else:
            self.k = max(self.k - 1, 1)
