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

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgespec.decode.acceptance import ByPlace, ByScore, outcomes
from edgespec.decode.costs import ForwardCost
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
    by_score: ByScore
    by_place: ByPlace
    proposed: tuple[Draft, ...] = ()

    def chances(self, draft: Draft) -> list[float]:
        """For each token: the chance that it and all before it stand."""
        found: list[float] = []
        chance = 1.0
        for place in range(len(draft)):
            scored = place < len(draft.scores)
            chance *= self.by_score.chance(draft.scores[place]) if scored else self.by_place.chance(place)
            found.append(chance)
        return found

    def learn(self, draft: Draft, committed: Sequence[int]) -> None:
        for place, accepted in enumerate(outcomes(draft.tokens, committed)):
            self.by_place.update(place, accepted)
            if place < len(draft.scores):
                self.by_score.update(draft.scores[place], accepted)


class Arbiter:
    """Several drafters as one, and its own draft length: pass it as both to the loop.

    free: drafters without a model, in the order of trust. model: a draft model, or None. target_s, draft_s: costs of
    their forwards. With another draft length (a fixed k) it only chooses who drafts.
    """

    def __init__(
        self,
        free: Sequence[Drafter],
        model: StepwiseDrafter | None,
        *,
        target_s: ForwardCost,
        draft_s: ForwardCost | None = None,
    ) -> None:
        assert (model is None) == (draft_s is None)
        self._free = [_Judged(drafter, ByScore(), ByPlace()) for drafter in free]
        self._model = _Judged(model, ByScore(), ByPlace()) if model is not None else None
        self.model = model
        self._target_s = target_s
        self._draft_s = draft_s
        self._host_s = 0.0
        self._tokens, self._seconds = 0.0, 0.0
        self._unspent_s = 0.0
        self._resting = 0
        self._most: int | None = None
        self._pending, self._steps = 0, 0
        self._length = 0
        self._probing = False
        self.name = "+".join(judged.drafter.name for judged in self._all)

    @property
    def _all(self) -> list[_Judged]:
        return [*self._free, *([self._model] if self._model else [])]

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        for judged in self._all:
            judged.drafter.begin(context, params)
        if self._seconds:  # another text, another rate: what the last one did is worth a few rounds
            weight = min(1.0, _REMEMBERED * self._round_s(1) / self._seconds)
            self._tokens, self._seconds = self._tokens * weight, self._seconds * weight

    def next(self, most: int) -> int:
        """As a draft length: as far as it goes; ``propose`` decides."""
        self._most = min(most, _LONGEST)
        return self._most

    def propose(self, context: Sequence[int], k: int) -> Draft:
        free_length, self._most = self._most is not None, None
        self._length, self._steps, self._probing = len(context), 0, False
        for judged in self._all:
            judged.proposed = ()
        if k == 0:
            return Draft(reason="no room")
        offers = [(judged, self._offer(judged, context, k)) for judged in self._free]
        if not free_length:
            return self._whole(offers, context, k)
        plain = 1.0 - self.rate * self._round_s(1)
        copied = any(len(draft) for _, draft in offers)
        best, best_worth = Draft(reason="not worth its time" if copied else "nothing to copy"), plain
        for judged, draft in offers:
            offer, worth = self._cut(judged, draft, judged.chances(draft))
            if worth > best_worth:
                best, best_worth = offer, worth
        if self._model is None:
            return best
        worth = self._model_worth(k)
        self._probing = worth <= best_worth
        if self._probing and not self._may_probe(worth, best_worth):
            self._probing = False
            return best
        offer, worth = self._drafted(context, k)  # the time to draft is spent now, whatever comes of it
        if worth > best_worth:
            return offer
        return best if len(best) else replace(best, reason="the model was not sure")

    def commit(self, context: Sequence[int], verdict: Verdict, step: Step) -> None:
        for judged in self._all:
            for draft in judged.proposed:
                judged.learn(draft, verdict.tokens)
            judged.drafter.commit(context, verdict, step)

    def update(self, round_: Round) -> None:
        """As a draft length: the times of the round that was just committed."""
        width, context = 1 + round_.evaluated, self._length
        target_s = min(round_.target_s, 2 * self._target_s(width, context))  # the first forward sets things up
        self._target_s.update(width, context, round_.target_s)
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

    def only(self, name: str) -> Arbiter:
        """One of its drafters alone, with what is known of costs and nothing of acceptance."""
        free = [judged.drafter for judged in self._free if judged.drafter.name == name]
        model = self.model if self.model is not None and self.model.name == name else None
        assert free or model, name
        return Arbiter(free, model, target_s=self._target_s, draft_s=self._draft_s if model else None)

    @property
    def drafters(self) -> list[str]:
        return [judged.drafter.name for judged in self._all]

    @property
    def plain_s(self) -> float:
        """What a token is expected to take without drafting, here and now."""
        return self._round_s(1)

    @property
    def rate(self) -> float:
        """Tokens a second, lately; at least what plain decoding is expected to do."""
        plain = 1.0 / self._round_s(1)
        return max(plain, self._tokens / self._seconds) if self._seconds else plain

    def _round_s(self, width: int) -> float:
        return self._target_s(width, self._length) + self._host_s

    def _offer(self, judged: _Judged, context: Sequence[int], k: int) -> Draft:
        draft = judged.drafter.propose(context, k)
        judged.proposed = (draft,) if len(draft) else ()
        return draft

    def _cut(self, judged: _Judged, draft: Draft, chances: Sequence[float]) -> tuple[Draft, float]:
        """A draft as long as it is worth verifying, and what that round is worth."""
        rate, tokens = self.rate, 1.0
        length, best = 0, tokens - rate * self._round_s(1)
        for n, chance in enumerate(chances, 1):
            tokens += chance
            worth = tokens - rate * self._round_s(1 + n)
            if worth > best:
                length, best = n, worth
        cut = replace(draft, tokens=draft.tokens[:length], scores=draft.scores[:length])
        return replace(cut, by=judged.drafter.name, expected=sum(chances[:length])), best

    def _model_worth(self, k: int) -> float:
        """What a round with the model is worth at its best length, before it has said anything."""
        assert self._model and self.model and self._draft_s
        pending = self.model.pending(self._length)
        rate, tokens, chance = self.rate, 1.0, 1.0
        seconds = self._draft_s(pending, self._length)
        best = -1.0
        for place in range(k):
            chance *= self._model.by_place.chance(place)
            tokens += chance
            worth = tokens - rate * (seconds + self._round_s(2 + place))
            if worth < best:
                break
            best = worth
            seconds += self._draft_s(1, self._length)
        return best

    def _may_probe(self, worth: float, best: float) -> bool:
        lost_s = (best - worth) / self.rate
        return not self._resting and lost_s <= self._unspent_s

    def _drafted(self, context: Sequence[int], k: int) -> tuple[Draft, float]:
        """By the model, as far as it pays, then what the others know behind it; and what it is worth."""
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

        draft = self.model.propose_while(context, 1 if self._probing else k, go_on)
        self._steps = len(draft)
        model.proposed = (draft,) if len(draft) else ()
        chances = model.chances(draft)
        if 0 < len(draft) < k and not self._probing:
            draft, chances = self._with_tail(draft, chances, context, k)
        return self._cut(model, draft, chances)

    def _with_tail(
        self, draft: Draft, chances: list[float], context: Sequence[int], k: int
    ) -> tuple[Draft, list[float]]:
        """What the first free drafter that has something would add: it costs rows only, and is cut like the rest."""
        longer = [*context, *draft.tokens]
        for judged in self._free:
            tail = judged.drafter.propose(longer, k - len(draft))
            if len(tail):
                behind = [chances[-1] * chance for chance in judged.chances(tail)]
                whole = replace(draft, tokens=draft.tokens + tail.tokens, scores=draft.scores + tail.scores)
                return whole, chances + behind
        return draft, chances

    def _whole(self, offers: list[tuple[_Judged, Draft]], context: Sequence[int], k: int) -> Draft:
        """A fixed length: the free drafters in their order, then the model."""
        for judged, draft in offers:
            if len(draft):
                return replace(draft, by=judged.drafter.name)
        if self._model is None:
            return Draft(reason="nothing to copy")
        assert self.model
        self._pending = self.model.pending(self._length)
        draft = self._model.drafter.propose(context, k)
        self._steps = len(draft)
        self._model.proposed = (draft,)
        return replace(draft, by=self._model.drafter.name)
