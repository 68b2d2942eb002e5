"""Which drafter, and how far, round by round: what is expected to commit most tokens for its time.

A round that commits n tokens in s seconds is worth ``n - rate * s``, where ``rate`` is what decoding has been doing
lately in tokens a second: time spent here is taken from rounds that earn that rate (the marginal value theorem,
Charnov 1976; the average-reward criterion). Drafting nothing is one of the choices, so the worst case is plain
decoding and what it costs to keep an eye on the drafters.

Drafters that cost nothing (lookup in what was written) are asked every round, and judged by what the target then
committed, whether their draft was taken or not. A draft model costs a forward for each token. It is stopped as soon
as one more token is not worth its time, by the model's own confidence, whose meaning is learned from outcomes
(``decode.acceptance``). When it is not chosen it learns nothing, so it is tried again now and then: the time lost on
trials stays under ``PROBE`` of all time.

No clock in here: times come with the rounds (``update``), costs from ``decode.costs``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from edgespec.decode.acceptance import ByPlace, ByScore
from edgespec.decode.costs import ForwardCost
from edgespec.decode.tree import Branch, merge
from edgespec.drafters.base import Drafter, StepwiseDrafter
from edgespec.types import Draft, Round, SamplingParams, Step, Verdict

PROBE = 0.01
"""share of the time that may be lost on trying a drafter that is not expected to pay"""
_LONGEST = 16
_WINDOW = 0.98
"""weight of earlier rounds in the rate: the last fifty count"""
_REMEMBERED = 8
"""plain rounds that the rate of an earlier text is worth"""
_RESTING = 8
"""rounds between trials, at least"""


@dataclass
class _Judged:
    """What is known of a drafter."""

    drafter: Drafter
    by_score: ByScore = field(default_factory=ByScore)
    of_others: ByScore = field(default_factory=ByScore)
    by_place: ByPlace = field(default_factory=ByPlace)
    proposed: Draft = field(default_factory=Draft)

    def chances(self, draft: Draft) -> list[float]:
        """For each token: the chance that it and all above it stand."""
        found: list[float] = []
        depths: list[int] = []
        for index, row in enumerate(draft.parents):
            depths.append(depths[row - 1] + 1 if row else 0)
            own = self.by_score.chance(draft.scores[index]) if draft.scores else self.by_place.chance(depths[index])
            found.append(own * (found[row - 1] if row else 1.0))
        return found

    def branches(self, draft: Draft) -> list[Branch]:
        """A draft, chain or tree, as chains from the root; runners-up of a chain are chains of their own."""
        chances = self.chances(draft)
        paths: list[list[int]] = []
        for index, row in enumerate(draft.parents):
            paths.append([*paths[row - 1], index] if row else [index])
        inner = {row - 1 for row in draft.parents}
        leaves = [path for index, path in enumerate(paths) if index not in inner]
        found = [Branch(tuple(draft.tokens[i] for i in path), tuple(chances[i] for i in path)) for path in leaves]
        for place, (token, score) in enumerate(draft.others):
            above = chances[place - 1] if place else 1.0
            found.append(
                Branch((*draft.tokens[:place], token), (*chances[:place], above * self.of_others.chance(score)))
            )
        return found

    def learn(self, committed: Sequence[int]) -> None:
        """What the target said of ``proposed``: of every token that stands right behind what was committed."""
        draft, self.proposed = self.proposed, Draft()
        stands: list[int | None] = []  # how deep an accepted token is; None for the others
        for index, (token, row) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
            above = stands[row - 1] if row else 0
            stands.append(None)
            if above is None or above >= len(committed):
                continue
            accepted = token == committed[above]
            stands[index] = above + 1 if accepted else None
            if draft.scores:
                self.by_score.update(draft.scores[index], accepted)
            if draft.tree is None:
                self.by_place.update(above, accepted)
                if draft.others:
                    other, score = draft.others[index]
                    self.of_others.update(score, other == committed[above])


class Arbiter:
    """Several drafters as one, and its own draft length: pass it as both to the loop.

    free: drafters without a model, in the order of trust. model: a draft model, or None. target_s, draft_s: costs of
    their forwards. trees: the target verifies trees, so several may draft the same round. With another draft length (a
    fixed k) it only chooses who drafts.
    """

    def __init__(
        self,
        free: Sequence[Drafter],
        model: StepwiseDrafter | None,
        *,
        target_s: ForwardCost,
        draft_s: ForwardCost | None = None,
        trees: bool = False,
    ) -> None:
        assert (model is None) == (draft_s is None)
        self._free = [_Judged(drafter) for drafter in free]
        self._asked = self._free
        self._model = _Judged(model) if model is not None else None
        self.model = model
        self._trees = trees
        self.target_s = target_s
        self._draft_s = draft_s
        self._host_s = 0.0
        self._tokens, self._seconds = 0.0, 0.0
        self._unspent_s = 0.0
        self._resting = 0
        self._most: int | None = None
        self._pending, self._steps = 0, 0
        self._length = 0
        self._probing = False
        self.remembers = any(judged.drafter.remembers for judged in self._all)
        self.name = "+".join(judged.drafter.name for judged in self._all)

    @property
    def _all(self) -> list[_Judged]:
        return [*self._free, *([self._model] if self._model else [])]

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        for judged in self._all:
            judged.drafter.begin(context, params)
        # By rejection the text depends on what the model was asked to draft, and that must not depend on earlier texts.
        repeats = self._model is not None and params.verification == "rejection" and not params.greedy
        self._asked = [judged for judged in self._free if not (repeats and judged.drafter.remembers)]
        self.target_s.begin()
        if self._draft_s is not None:
            self._draft_s.begin()
        if self._seconds:  # another text, another rate: what the last one did is worth a few rounds
            weight = min(1.0, _REMEMBERED * self.plain_s / self._seconds)
            self._tokens, self._seconds = self._tokens * weight, self._seconds * weight

    def next(self, most: int) -> int:
        """As a draft length: as far as it goes; ``propose`` decides."""
        self._most = min(most, _LONGEST)
        return self._most

    def propose(self, context: Sequence[int], k: int) -> Draft:
        free_length, self._most = self._most is not None, None
        self._length, self._steps, self._probing = len(context), 0, False
        for judged in self._all:
            judged.proposed = Draft()
        if k == 0:
            return Draft(reason="no room")
        drafts = [(judged, self._offer(judged, context, k)) for judged in self._asked]
        if not free_length:
            return self._whole(drafts, context, k)
        offers = [(judged.drafter.name, judged.branches(draft)) for judged, draft in drafts if len(draft)]
        self._settle([branch for _, branches in offers for branch in branches], k)
        reason = "not worth its time" if offers else "nothing to copy"
        best, best_worth = self._best(offers, k, reason)
        if self._model is None:
            return best
        worth = self._model_worth(k)
        self._probing = worth <= best_worth
        if self._probing and not self._may_probe(worth, best_worth):
            self._probing = False
            return best
        draft = self._drafted(context, k)
        if draft.kind == "sampled":  # whether a drawn token is verified must not depend on which it was
            return replace(draft, by=self._model.drafter.name, expected=sum(self._model.chances(draft)))
        offers.append((self._model.drafter.name, self._with_tail(draft, context, k)))
        best, _ = self._best(offers, k, "the model was not sure")  # the time to draft is spent, whatever comes of it
        return best

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        for judged in self._all:
            judged.learn(verdict.tokens)
            judged.drafter.commit(context, draft, verdict, step)

    def update(self, round_: Round) -> None:
        """As a draft length: the times of the round that was just committed."""
        width, context = 1 + round_.evaluated, self._length
        target_s = min(round_.target_s, 2 * self.target_s.steady(width, context))  # the first forward sets things up
        self.target_s.update(width, context, round_.target_s)
        self._host_s = round_.host_s if not self._tokens else 0.9 * self._host_s + 0.1 * round_.host_s
        drafted_s = 0.0
        if self._steps and self._draft_s is not None:
            drafted_s = round_.draft_s
            expected_s = self._draft_s(self._pending, context) + (self._steps - 1) * self._draft_s(1, context)
            self._draft_s.scale(drafted_s / expected_s)
        seconds = target_s + drafted_s + round_.host_s
        self._tokens = self._tokens * _WINDOW + round_.committed
        self._seconds = self._seconds * _WINDOW + seconds
        self._unspent_s += PROBE * seconds
        if self._probing:
            self._unspent_s -= max(0.0, seconds - round_.committed / self.rate)
            self._resting = _RESTING
        elif self._steps:
            self._resting = 0
        else:
            self._resting = max(0, self._resting - 1)

    def reset(self) -> None:
        for judged in self._all:
            judged.drafter.reset()

    def only(self, *names: str) -> Arbiter:
        """Some of its drafters, with what is known of costs and nothing of acceptance."""
        free = [judged.drafter for judged in self._free if judged.drafter.name in names]
        model = self.model if self.model is not None and self.model.name in names else None
        assert free or model, names
        draft_s = self._draft_s if model else None
        return Arbiter(free, model, target_s=self.target_s, draft_s=draft_s, trees=self._trees)

    @property
    def drafters(self) -> list[str]:
        return [judged.drafter.name for judged in self._all]

    @property
    def plain_s(self) -> float:
        """What a token is expected to take without drafting, here and now."""
        return self.target_s.steady(1, self._length) + self._host_s

    @property
    def rate(self) -> float:
        """Tokens a second, lately; at least what plain decoding is expected to do."""
        plain = 1.0 / self.plain_s
        return max(plain, self._tokens / self._seconds) if self._seconds else plain

    def _round_s(self, width: int) -> float:
        return self.target_s(width, self._length) + self._host_s

    def _offer(self, judged: _Judged, context: Sequence[int], k: int) -> Draft:
        judged.proposed = judged.drafter.propose(context, k)
        return judged.proposed

    def _best(self, offers: list[tuple[str, list[Branch]]], k: int, reason: str) -> tuple[Draft, float]:
        """The best of the drafts, or all of them as a tree, cut to what is worth verifying; and what that is worth.

        reason: for a draft of nothing, if that is best.
        """
        rate, plain_s = self.rate, self._round_s(1)
        best, best_worth = Draft(reason=reason), 1.0 - rate * plain_s

        def cost(tokens: int) -> float:
            return rate * (self._round_s(1 + tokens) - plain_s)

        groups = [offers] if self._trees else [[offer] for offer in offers]
        for group in groups:
            merged = merge([branch for _, branches in group for branch in branches], cost, k)
            worth = 1.0 + merged.expected - cost(len(merged.tokens)) - rate * plain_s
            if merged.tokens and worth > best_worth:
                draft = Draft(merged.tokens, merged.tree, expected=merged.expected)
                first = {token for token, row in zip(draft.tokens, draft.parents, strict=True) if row == 0}
                by = [name for name, branches in group if any(branch.tokens[0] in first for branch in branches)]
                best_worth = worth
                best = replace(draft, by="+".join(by))
        return best, best_worth

    def _settle(self, branches: Sequence[Branch], k: int) -> None:
        """Tell the target at which width this round would be worth most, changes of width aside."""
        rate = self.rate
        widest = min(k + 1, self.target_s.widths[-1])
        gains = [max((sum(b.chances[:n]) for b in branches), default=0.0) for n in range(widest)]  # by tokens verified
        for n, (tokens, seconds) in enumerate(self._prospects(widest - 1), 1):
            gains[n] = max(gains[n], tokens - rate * seconds)
        best = list(accumulate(gains, max))
        self.target_s.prefer(
            lambda width: best[min(width, widest) - 1] / rate - self.target_s.steady(width, self._length)
        )

    def _prospects(self, k: int) -> Iterator[tuple[float, float]]:
        """For drafts of 1 to k tokens by the model, before it has said anything: tokens accepted, seconds to draft."""
        if self._model is None:
            return
        assert self.model and self._draft_s
        tokens, chance = 0.0, 1.0
        seconds = self._draft_s(self.model.pending(self._length), self._length)
        for place in range(k):
            chance *= self._model.by_place.chance(place)
            tokens += chance
            yield tokens, seconds
            seconds += self._draft_s(1, self._length)

    def _model_worth(self, k: int) -> float:
        """What a round with the model is worth at its best length, before it has said anything."""
        rate = self.rate
        return max(
            1.0 + tokens - rate * (seconds + self._round_s(1 + n))
            for n, (tokens, seconds) in enumerate(self._prospects(k), 1)
        )

    def _may_probe(self, worth: float, best: float) -> bool:
        lost_s = (best - worth) / self.rate
        return not self._resting and lost_s <= self._unspent_s

    def _drafted(self, context: Sequence[int], k: int) -> Draft:
        """By the model, as far as it pays."""
        assert self._model and self.model and self._draft_s
        model, rate = self._model, self.rate
        self._pending = self.model.pending(self._length)
        chance = 1.0
        a_step_s = self._draft_s(1, self._length)

        def go_on(scores: Sequence[float]) -> bool:
            nonlocal chance
            chance *= model.by_score.chance(scores[-1])
            n = len(scores)
            more_s = a_step_s + self._round_s(2 + n) - self._round_s(1 + n)
            return chance * model.by_place.chance(n) > rate * more_s

        draft = model.proposed = self.model.propose_while(context, 1 if self._probing else k, go_on)
        self._steps = len(draft)
        return draft

    def _with_tail(self, draft: Draft, context: Sequence[int], k: int) -> list[Branch]:
        """The model's draft and, behind its end, what the first free drafter with something to say would add: that
        costs rows only, and is cut like the rest."""
        assert self._model
        branches = self._model.branches(draft)
        if not len(draft) or len(draft) >= k or self._probing:
            return branches
        longer = [*context, *draft.tokens]
        chances = tuple(self._model.chances(draft))
        for judged in self._asked:
            tail = judged.drafter.propose(longer, k - len(draft))
            if len(tail) and tail.tree is None:
                behind = tuple(chances[-1] * chance for chance in judged.chances(tail))
                whole = Branch(draft.tokens + tail.tokens, chances + behind)
                return [whole, *(branch for branch in branches if branch.tokens != draft.tokens)]
        return branches

    def _whole(self, drafts: list[tuple[_Judged, Draft]], context: Sequence[int], k: int) -> Draft:
        """A fixed length: the free drafters in their order, then the model."""
        for judged, draft in drafts:
            if len(draft):
                return replace(draft, by=judged.drafter.name)
        if self._model is None:
            return Draft(reason="nothing to copy")
        assert self.model
        self._pending = self.model.pending(self._length)
        draft = self._model.drafter.propose(context, k)
        self._steps = len(draft)
        self._model.proposed = draft
        return replace(draft, by=self._model.drafter.name)
