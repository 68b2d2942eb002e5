"""What a round is worth: the tokens it commits, less what its time would have earned elsewhere.

A round that commits n tokens in s seconds is worth ``n - rate * s``, where ``rate`` is what decoding has been doing
lately in tokens a second: time spent here is taken from rounds that earn that rate (the marginal value theorem,
Charnov 1976; the average-reward criterion). There are two rates, since copying is much faster: one where there is
something to copy, and one elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from edgespec.adaptive.candidate import Candidate
from edgespec.adaptive.draft_cost import DraftCost
from edgespec.adaptive.draft_tree import Branch, merge
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.adaptive.recent import KEPT, Pace
from edgespec.types import Draft, DraftNote

Offer = tuple[str, list[Branch]]
"""Who drafts, and what."""


class RoundWorth:
    """Of the round that runs: ``begin`` says which. trees: several may draft the same round. longest: most tokens of a
    draft by the model.

    length: tokens of the context. forced: the last of them, which are verified in front of every draft.
    """

    def __init__(
        self, target_s: ForwardCost, draft_s: DraftCost | None, *, trees: bool, longest: int | None = None
    ) -> None:
        self._target_s, self._draft_s, self._trees, self._longest = target_s, draft_s, trees, longest
        self._host_s = 0.0
        self._paces = {False: Pace(), True: Pace()}  # of rounds without and with something to copy
        self._copying = False
        self._rounds_s: dict[int, float] = {}  # what ``round_s`` found this round
        self.length = self.forced = 0

    def begin(self, length: int, forced: int = 0, *, copying: bool = False) -> None:
        self.length, self.forced, self._copying = length, forced, copying
        self._rounds_s.clear()

    def update(self, tokens: int, seconds: float, host_s: float) -> None:
        """It committed so many tokens, and would usually take so long, ``host_s`` of it in no model."""
        self._paces[self._copying].update(tokens, seconds)
        self._host_s = KEPT * self._host_s + (1 - KEPT) * host_s if self._host_s else host_s

    @property
    def plain_s(self) -> float:
        """What a token is expected to take without drafting, here and now."""
        return self._target_s.seconds(1, self.length) + self._host_s

    @property
    def rate(self) -> float:
        """Tokens a second, lately, where the text is like here; at least what plain decoding is expected to do."""
        return max(1.0 / self.plain_s, self._paces[self._copying].rate)

    def round_s(self, tokens: int) -> float:
        """A round that verifies so many drafted tokens behind the forced ones."""
        seconds = self._rounds_s.get(tokens)
        if seconds is None:
            seconds = self._target_s(1 + self.forced + tokens, self.length) + self._host_s
            self._rounds_s[tokens] = seconds
        return seconds

    def choose(self, offers: Sequence[Offer], k: int, reason: str) -> tuple[Draft, float]:
        """The best of the drafts, or all of them as a tree, cut to what is worth verifying; and what that is worth.

        reason: for a draft of nothing, if that is best.
        """
        rate, undrafted_s = self.rate, self.round_s(0)
        sure = 1.0 + self.forced
        best, best_worth = Draft(note=DraftNote(reason=reason)), sure - rate * undrafted_s

        def cost(tokens: int) -> float:
            return rate * (self.round_s(tokens) - undrafted_s)

        groups = [offers] if self._trees else [[offer] for offer in offers]
        for group in groups:
            merged = merge([branch for _, branches in group for branch in branches], cost, k)
            worth = sure + merged.expected - cost(len(merged.tokens)) - rate * undrafted_s
            if merged.tokens and worth > best_worth:
                draft = Draft(merged.tokens, merged.tree)
                first = {token for token, row in zip(draft.tokens, draft.parents, strict=True) if row == 0}
                by = [name for name, branches in group if any(branch.tokens[0] in first for branch in branches)]
                best_worth = worth
                best = draft.noted(by="+".join(by), expected=merged.expected)
        return best, best_worth

    def of_model(self, model: Candidate, k: int) -> float:
        """A round in which the model drafts as far as pays, before it has said anything."""
        rate, sure = self.rate, 1.0 + self.forced
        return max(
            sure + tokens - rate * (seconds + self.round_s(n))
            for n, (tokens, seconds) in enumerate(self._prospects(model, k), 1)
        )

    def by_width(self, offers: Sequence[Offer], model: Candidate | None, k: int) -> Callable[[int], float]:
        """What it would be worth at each measured width, in seconds, if switches of width were free."""
        rate, forced = self.rate, self.forced
        widest = min(1 + forced + k, self._target_s.widths[-1])
        room = max(0, widest - 1 - forced)
        gains = [float(min(n, forced)) for n in range(widest)]  # by tokens verified: the forced ones, then drafted ones
        for _, branches in offers:
            for branch in branches:
                for n, tokens in enumerate(accumulate(branch.chances[:room]), 1 + forced):
                    gains[n] = max(gains[n], forced + tokens)
        for n, (tokens, seconds) in enumerate(self._prospects(model, room) if model else (), 1 + forced):
            gains[n] = max(gains[n], forced + tokens - rate * seconds)
        best = list(accumulate(gains, max))
        return lambda width: best[min(width, widest) - 1] / rate - self._target_s.seconds(width, self.length)

    def _prospects(self, model: Candidate, k: int) -> Iterator[tuple[float, float]]:
        """For drafts of 1 to k tokens by the model, or as many as it drafts: tokens accepted, seconds to draft.

        Without what it takes to catch up: that has to be paid whenever it drafts again, and does not speak against now.
        """
        assert self._draft_s
        tokens, chance = 0.0, 1.0
        a_step_s = self._draft_s.seconds(1, self.length)
        another_s = self._draft_s.read_s(1, self.length)  # of the last token, next time, if all are accepted
        seconds = self._draft_s.start_s
        for place in range(k if self._longest is None else min(k, self._longest)):
            chance *= model.by_position.chance(place)
            tokens += chance
            seconds += a_step_s
            yield tokens, seconds + chance * another_s
