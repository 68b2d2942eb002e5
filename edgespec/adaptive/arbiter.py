"""Which drafter, and how far, round by round: what is expected to commit most tokens for its time.

A round that commits n tokens in s seconds is worth ``n - rate * s``, where ``rate`` is what decoding has been doing
lately in tokens a second: time spent here is taken from rounds that earn that rate (the marginal value theorem,
Charnov 1976; the average-reward criterion). Drafting nothing is one of the choices, so the worst case is plain
decoding and what it costs to keep an eye on the drafters.

Tokens that a constraint forces are a free draft of chance 1 that every choice begins with (``decode.forced_tokens``):
they add to what each round commits, and a drafted token is charged with the step from their width to the next.

Drafters that cost nothing (lookup in what was written) are asked every round, and judged by what the target then
committed, whether their draft was taken or not. A draft model costs a forward for each token. It is stopped as soon as
one more token is not worth its time, by the model's own confidence, whose meaning is learned from outcomes
(``adaptive.acceptance``). When it is not chosen it learns nothing, so it is tried again now and then. And as long as
every round drafts, a forward that takes longer than was measured looks like a slower machine: so now and then a round
drafts nothing, to see. What trials of both kinds lose stays under a hundredth of all time (``adaptive.exploration``).

No clock in here: times come with the rounds (``update``), costs from ``adaptive.forward_cost``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, prod

from edgespec.adaptive.candidate import Candidate
from edgespec.adaptive.draft_tree import Branch, merge
from edgespec.adaptive.exploration import Exploration
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.protocols import Drafter, StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, DraftNote, Hidden, Round, Step, Verdict

_LONGEST = 16
_WINDOW = 0.98
"""weight of earlier rounds in the rate: the last fifty count"""
_REMEMBERED = 8
"""plain rounds that the rate of an earlier text is worth"""
_TEXT, _FOLLOW = 128.0, 0.2
"""tokens that a text is thought to have at first, and how far that moves to what the last one had"""
_SLIGHT = 0.05
"""chance of a token below which nobody looks further"""


@dataclass
class _Pace:
    """Tokens a second over the last rounds."""

    tokens: float = 0.0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self.tokens = self.tokens * _WINDOW + tokens
        self.seconds = self.seconds * _WINDOW + seconds

    def remember(self, seconds: float) -> None:
        """Another text, another pace: this one's is worth no more than so long."""
        weight = min(1.0, seconds / self.seconds) if self.seconds else 0.0
        self.tokens, self.seconds = self.tokens * weight, self.seconds * weight


class Arbiter:
    """The policy of measured costs (see ``protocols.Policy``).

    free: drafters without a model, in the order of trust. model: a draft model, or None. target_s, draft_s: costs of
    their forwards. trees: the target verifies trees, so several may draft the same round.
    """

    longest = _LONGEST

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
        self._free = [Candidate(drafter) for drafter in free]
        self._asked = self._free
        self._model = Candidate(model) if model is not None else None
        self.model = model
        self._trees = trees
        self.target_s = target_s
        self.draft_s = draft_s
        self._host_s = 0.0
        self._rounds_s: dict[int, float] = {}  # what ``_round_s`` found this round
        self._paces = {False: _Pace(), True: _Pace()}  # of rounds without and with something to copy
        self._copying = False
        self._exploration = Exploration()
        self._forced = 0
        self._unread_tokens, self._steps, self._accepted = 0, 0, False
        self._length = self._prompt = self._written = 0
        self._usual = _TEXT
        self.name = "+".join(candidate.drafter.name for candidate in self._all)
        self._vote_width([], _LONGEST)

    @property
    def _all(self) -> list[Candidate]:
        return [*self._free, *([self._model] if self._model else [])]

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        for candidate in self._free:
            candidate.drafter.begin(context, params)
        for candidate in self._all:
            for known in (candidate.by_score, candidate.of_alternatives, candidate.by_position):
                known.begin()
        # By rejection the text depends on what the model was asked to draft, and that must not depend on earlier texts.
        repeats = self._model is not None and params.rejects
        self._asked = [candidate for candidate in self._free if not (repeats and candidate.drafter.uses_history)]
        self.target_s.begin()
        if self.draft_s is not None:
            self.draft_s.begin()
        if self._length:
            self._usual += _FOLLOW * (self._written - self._usual)
        self._length = self._prompt = len(context)
        self._written, self._copying = 0, False
        for pace in self._paces.values():
            pace.remember(_REMEMBERED * self.plain_s)
        if self.model is not None:
            self.model.begin(context, params, read=False)
            # How it reads decides its last digits, and what it draws by rejection must not depend on earlier texts.
            if repeats or self._worth_catching_up(self._gain_s(), _LONGEST):
                self.model.read(context)

    def draft(self, context: Sequence[int], limit: int, forced: int = 0, allowed: Allowed | None = None) -> Draft:
        k = min(limit, _LONGEST)
        self._forced = forced
        self._length, self._steps, self._copying = len(context), 0, False
        self._exploration.begin()
        for candidate in self._all:
            candidate.proposed = Draft()
        if k == 0:
            return Draft(note=DraftNote(reason="no room"))
        drafts = [(candidate, self._offer(candidate, context, k, allowed)) for candidate in self._asked]
        offers = [(candidate.drafter.name, candidate.branches(draft)) for candidate, draft in drafts if len(draft)]
        self._copying = bool(offers)
        if self.target_s.pins_width:
            self._vote_width([branch for _, branches in offers for branch in branches], k)
        self._rounds_s.clear()
        reason = "not worth its time" if offers else "nothing to copy"
        best, best_worth = self._best(offers, k, reason)
        worth = -inf if self._model is None else self._model_worth(k)
        gain_s = (worth - best_worth) / self.rate
        pays = gain_s > 0 and self._worth_catching_up(gain_s, k)
        if (pays or len(best)) and self._probes_plain(worth if pays else best_worth):
            return Draft(note=DraftNote(reason="to compare"))
        if self._model is None:
            return best
        if gain_s > 0 and not pays:
            return best if len(best) else best.noted(reason="too much to read first")
        first = self._length == self._prompt  # no trial delays the first token
        if not pays and (first or not self._exploration.probe_drafter(-gain_s, self._catch_up_s(), self.plain_s)):
            return best
        draft = self._drafted(context, k, allowed)
        # A probe also shows what it takes to verify, where a switch of width does not hide that.
        look = self.probing and len(draft) > 0 and not self.target_s.switch_is_expensive
        if draft.kind == "sampled" or look:  # whether a drawn token is verified must not depend on which it was
            return draft.noted(by=self._model.drafter.name, expected=sum(self._model.chances(draft)))
        offers.append((self._model.drafter.name, self._with_tail(draft, context, k, allowed)))
        best, _ = self._best(offers, k, "the model was not sure")  # the time to draft is spent, whatever comes of it
        return best

    def width(self, tokens: int, context_length: int) -> int:
        return self.target_s.width(tokens, context_length)

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        self._written = len(context) - self._prompt
        forced = self._length - (len(context) - len(verdict.tokens))  # tokens in front of what was drafted
        if self._model is not None:
            first = self._model.proposed.tokens[:1]
            self._accepted = len(first) > 0 and list(first) == list(verdict.tokens[forced : forced + 1])
        for candidate in self._all:
            candidate.learn(verdict.tokens[forced:])
            candidate.drafter.commit(context, draft, verdict, step)

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        for candidate in self._all:
            candidate.drafter.observe(start, tokens, hidden)

    def update(self, round_: Round) -> None:
        context, width = self._length, round_.width
        expected_s = self.target_s.expected(width, context)
        self.target_s.update(round_.tokens, context, width, None if round_.read else round_.target_s)
        if round_.read:  # what it took is not of decoding alone
            return
        target_s = min(round_.target_s, 2 * expected_s)  # the first forward sets things up
        self._host_s = 0.9 * self._host_s + 0.1 * round_.host_s if self._host_s else round_.host_s
        drafted_s = read_s = 0.0
        if self._steps and self.draft_s is not None:
            drafted_s = round_.draft_s
            a_step_s = self.draft_s.seconds(1, context)
            catch_up_s = self.draft_s.read_s(self._unread_tokens - 1, context)
            draft_expected_s = self.draft_s.cache_refill_s + catch_up_s + self._steps * a_step_s
            read_s = drafted_s * self.draft_s.read_s(max(0, self._unread_tokens - 2), context) / draft_expected_s
            self.draft_s.scale(drafted_s / draft_expected_s)
        seconds = target_s + drafted_s + round_.host_s
        usual_s = seconds - read_s  # more than one token is not read every round
        self._paces[self._copying].add(round_.committed, usual_s)
        lost_s = seconds - round_.committed / self.rate
        verified = round_.evaluated > 0
        self._exploration.update(seconds, lost_s, by_model=self._steps > 0, verified=verified, accepted=self._accepted)

    def reset(self) -> None:
        for candidate in self._all:
            candidate.drafter.reset()

    def only(self, *names: str) -> Arbiter:
        """Some of its drafters, with what is known of costs and nothing of acceptance."""
        free = [candidate.drafter for candidate in self._free if candidate.drafter.name in names]
        model = self.model if self.model is not None and self.model.name in names else None
        assert free or model, names
        draft_s = self.draft_s.fresh() if model and self.draft_s else None
        return Arbiter(free, model, target_s=self.target_s.fresh(), draft_s=draft_s, trees=self._trees)

    @property
    def probing(self) -> bool:
        """The round that runs is a trial: the model drafts although nothing is expected of it."""
        return self._exploration.probing

    @property
    def drafters(self) -> list[str]:
        return [candidate.drafter.name for candidate in self._all]

    @property
    def plain_s(self) -> float:
        """What a token is expected to take without drafting, here and now."""
        return self.target_s.seconds(1, self._length) + self._host_s

    @property
    def rate(self) -> float:
        """Tokens a second, lately, where the text is like here; at least what plain decoding is expected to do."""
        return max(1.0 / self.plain_s, self._paces[self._copying].rate)

    def _round_s(self, tokens: int) -> float:
        """A round that verifies so many drafted tokens behind the forced ones."""
        seconds = self._rounds_s.get(tokens)
        if seconds is None:
            seconds = self.target_s(1 + self._forced + tokens, self._length) + self._host_s
            self._rounds_s[tokens] = seconds
        return seconds

    def _offer(self, candidate: Candidate, context: Sequence[int], k: int, allowed: Allowed | None) -> Draft:
        candidate.proposed = candidate.drafter.propose(context, k, allowed).within(allowed)
        return candidate.proposed

    def _best(self, offers: list[tuple[str, list[Branch]]], k: int, reason: str) -> tuple[Draft, float]:
        """The best of the drafts, or all of them as a tree, cut to what is worth verifying; and what that is worth.

        reason: for a draft of nothing, if that is best.
        """
        rate, undrafted_s = self.rate, self._round_s(0)
        sure = 1.0 + self._forced
        best, best_worth = Draft(note=DraftNote(reason=reason)), sure - rate * undrafted_s

        def cost(tokens: int) -> float:
            return rate * (self._round_s(tokens) - undrafted_s)

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

    def _vote_width(self, branches: Sequence[Branch], k: int) -> None:
        """Tell the target at which width this round would be worth most, switches of width aside."""
        rate, forced = self.rate, self._forced
        widest = min(1 + forced + k, self.target_s.widths[-1])
        gains = [float(min(n, forced)) for n in range(widest)]  # by tokens verified: the forced ones, then drafted ones
        for branch in branches:
            for n, tokens in enumerate(accumulate(branch.chances[: max(0, widest - 1 - forced)]), 1 + forced):
                gains[n] = max(gains[n], forced + tokens)
        for n, (tokens, seconds) in enumerate(self._prospects(widest - 1 - forced), 1 + forced):
            gains[n] = max(gains[n], forced + tokens - rate * seconds)
        best = list(accumulate(gains, max))
        self.target_s.vote_width(
            lambda width: best[min(width, widest) - 1] / rate - self.target_s.seconds(width, self._length)
        )

    def _prospects(self, k: int) -> Iterator[tuple[float, float]]:
        """For drafts of 1 to k tokens by the model, before it has said anything: tokens accepted, seconds to draft.

        Without what it takes to catch up: that has to be paid whenever it drafts again, and does not speak against now.
        """
        if self._model is None:
            return
        assert self.draft_s
        tokens, chance = 0.0, 1.0
        a_step_s = self.draft_s.seconds(1, self._length)
        another_s = self.draft_s.read_s(1, self._length)  # of the last token, next time, if all are accepted
        seconds = self.draft_s.cache_refill_s + a_step_s
        for place in range(k):
            chance *= self._model.by_position.chance(place)
            tokens += chance
            yield tokens, seconds + chance * another_s
            if chance < _SLIGHT:
                return
            seconds += a_step_s

    def _model_worth(self, k: int) -> float:
        """What a round with the model is worth at its best length, before it has said anything."""
        rate = self.rate
        return max(
            1.0 + self._forced + tokens - rate * (seconds + self._round_s(n))
            for n, (tokens, seconds) in enumerate(self._prospects(k), 1)
        )

    def _gain_s(self) -> float:
        """Seconds that the model is expected to save in a round in which nobody else drafts."""
        self._rounds_s.clear()
        self._forced = 0
        plain_worth = 1.0 - self.rate * self._round_s(0)
        return (self._model_worth(_LONGEST) - plain_worth) / self.rate

    def _catch_up_s(self) -> float:
        """What it takes the model to read what it has not, beyond the step that a draft begins with anyway."""
        assert self.model and self.draft_s
        return self.draft_s.read_s(max(0, self.model.unread_tokens(self._length) - 1), self._length)

    def _worth_catching_up(self, gain_s: float, k: int) -> bool:
        """Whether the text will go on for long enough: as long as texts do, or as long again as it has, if there is
        room.

        gain_s: in a round, of two tokens or so. k: room, and ``_LONGEST`` is any.
        """
        written = self._length - self._prompt
        any_room = min(_LONGEST, self.target_s.widths[-1] - 1)
        left = k if k < any_room else max(self._usual - written, written)
        return self._catch_up_s() <= max(0.0, gain_s) * left / 2

    def _probes_plain(self, best: float) -> bool:
        """Whether to draft nothing, although ``best`` is what a round with a draft is worth.

        Not where that shows nothing: forced tokens or the pinned width make the forward as wide, or the text is new.
        """
        if self.target_s.switch_is_expensive or self._forced or self._length == self._prompt:
            return False
        lost_s = (best - (1.0 + self._forced)) / self.rate + self._round_s(0)
        return self._exploration.probe_plain(lost_s, self.rate * self.plain_s)

    def _drafted(self, context: Sequence[int], k: int, allowed: Allowed | None) -> Draft:
        """By the model, as far as it pays."""
        assert self._model and self.model and self.draft_s
        model, rate = self._model, self.rate
        a_step_s = self.draft_s.seconds(1, self._length)

        steps = 1

        def go_on(scores: Sequence[float]) -> bool:
            nonlocal steps
            chance = prod(model.by_score.chance(score) for score in scores)
            n = len(scores)
            more_s = a_step_s + self._round_s(1 + n) - self._round_s(n)
            pays = chance * model.by_position.chance(n) > rate * more_s
            steps += pays
            return pays

        self._unread_tokens = self.model.unread_tokens(self._length)
        draft = model.proposed = self.model.propose_while(context, 1 if self.probing else k, go_on, allowed)
        self._steps = steps if self._unread_tokens else 0
        if self._steps and not len(draft):  # it took its time and found no token that is allowed: as good as a miss
            model.by_position.update(0, False)
        return draft

    def _with_tail(self, draft: Draft, context: Sequence[int], k: int, allowed: Allowed | None) -> list[Branch]:
        """The model's draft and, behind its end, what the first free drafter with something to say would add: that
        costs rows only, and is cut like the rest."""
        assert self._model
        branches = self._model.branches(draft)
        if not len(draft) or len(draft) >= k or self.probing:
            return branches
        longer = [*context, *draft.tokens]
        chances = tuple(self._model.chances(draft))
        for candidate in self._asked:
            behind = None if allowed is None else lambda tokens: allowed([*draft.tokens, *tokens])
            tail = candidate.drafter.propose(longer, k - len(draft), behind).within(behind)
            if len(tail) and tail.tree is None:
                of_tail = tuple(chances[-1] * chance for chance in candidate.chances(tail))
                whole = Branch(draft.tokens + tail.tokens, chances + of_tail)
                return [whole, *(branch for branch in branches if branch.tokens != draft.tokens)]
        return branches
