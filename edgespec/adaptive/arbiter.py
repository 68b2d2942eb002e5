"""Which drafter, and how far, round by round: what is expected to commit most tokens for its time (``round_worth``).

Drafting nothing is one of the choices, so the worst case is plain decoding and what it costs to keep an eye on the
drafters.

Tokens that a constraint forces are a free draft of chance 1 that every choice begins with (``decode.forced_tokens``):
they add to what each round commits, and a drafted token is charged with the step from their width to the next.

Drafters that cost nothing (lookup in what was written) are asked every round, and judged by what the target then
committed, whether their draft was taken or not. A draft model costs a forward for each token, a head one for all, and
either stops where one more token is not worth its time (``stop_rule``). When it is not chosen it learns nothing, so it
is tried again now and then. And as long as every round drafts, a forward that takes longer than was measured looks like
a slower machine: so now and then a round drafts nothing, to see. What trials of both kinds lose stays under a hundredth
of all time (``exploration``).

No clock in here: times come with the rounds (``update``), costs from ``forward_cost``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from edgespec.adaptive.calibration import WIDTHS
from edgespec.adaptive.candidate import Candidate
from edgespec.adaptive.draft_cost import DraftCost
from edgespec.adaptive.draft_tree import Branch
from edgespec.adaptive.exploration import Exploration
from edgespec.adaptive.forward_cost import ForwardCost, cut_outlier
from edgespec.adaptive.round_worth import Offer, RoundWorth
from edgespec.adaptive.stop_rule import StopRule
from edgespec.protocols import Drafter, StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, DraftNote, Hidden, Round, Step, Verdict

# Tokens that a text is thought to have, until it has more. With none a draft model reads a prompt too late, and 2 % are
# lost. With any number it would read a long prompt for a short answer.
_TEXT_TOKENS = 128


class Arbiter:
    """The policy of measured costs (see ``protocols.Policy``).

    free: drafters without a model, in the order of trust. model: a draft model or a drafting head, or None. target_s:
    costs of the target's forwards. draft_s: of the model's drafts. trees: the target verifies trees, so several may
    draft the same round.
    """

    longest = WIDTHS[-1] - 1
    """as far as the cost of a forward was measured"""

    def __init__(
        self,
        free: Sequence[Drafter],
        model: StepwiseDrafter | None,
        *,
        target_s: ForwardCost,
        draft_s: DraftCost | None = None,
        trees: bool = False,
    ) -> None:
        assert (model is None) == (draft_s is None)
        self._free = [Candidate(drafter) for drafter in free]
        self._asked = self._free
        self._model = Candidate(model) if model is not None else None
        self.model = model
        self._trees = trees
        self.target_s, self.draft_s = target_s, draft_s
        self._worth = RoundWorth(target_s, draft_s, trees=trees, longest=model.longest if model else None)
        self._exploration = Exploration()
        self._drafting: StopRule | None = None  # what the model did this round
        self._prompt_length = 0
        self.name = "+".join(candidate.drafter.name for candidate in self._all)
        target_s.vote_width(self._worth.by_width([], self._model, self.longest))

    @property
    def _all(self) -> list[Candidate]:
        return [*self._free, *([self._model] if self._model else [])]

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        for candidate in self._free:
            candidate.drafter.begin(context, params)
        for candidate in self._all:
            for known in (candidate.by_score, candidate.of_alternatives, candidate.by_position):
                known.begin()
        # By rejection the text depends on what the model was asked to draft: no drafter may remember other texts then.
        repeats = self._model is not None and params.rejects
        self._asked = [candidate for candidate in self._free if not (repeats and candidate.drafter.uses_history)]
        self.target_s.begin()
        if self.draft_s is not None:
            self.draft_s.begin()
        self._exploration.begin()
        self._prompt_length = len(context)
        self._worth.begin(len(context))
        if self._model is not None and self.model is not None:
            self.model.begin(context, params, read=False)
            gain = self._worth.of_model(self._model, self.longest) - (1.0 - self._worth.rate * self._worth.round_s(0))
            # How it reads decides its last digits, and what it draws by rejection must not depend on earlier texts.
            if repeats or self._worth_catching_up(gain / self._worth.rate, self.longest):
                self.model.read(context)

    def draft(self, context: Sequence[int], limit: int, forced: int = 0, allowed: Allowed | None = None) -> Draft:
        k = min(limit, self.longest)
        worth, model = self._worth, self._model
        self._drafting = None
        self._exploration.begin_round()
        for candidate in self._all:
            candidate.proposed = Draft()
        if k == 0:
            worth.begin(len(context), forced)
            return Draft(note=DraftNote(reason="no room"))
        offers = self._offers(context, k, allowed)
        # A table always has something to say. To copy is to be more likely right than wrong.
        copying = any(branch.chances[0] > 0.5 for _, branches in offers for branch in branches)
        worth.begin(len(context), forced, copying=copying)
        if self.target_s.pins_width:
            self.target_s.vote_width(worth.by_width(offers, model, k))
        best, best_worth = worth.choose(offers, k, "not worth its time" if offers else "nothing to copy")
        model_worth = -inf if model is None else worth.of_model(model, k)
        gain_s = (model_worth - best_worth) / worth.rate
        pays = gain_s > 0 and self._worth_catching_up(gain_s, k)
        if (pays or len(best)) and self._probes_plain(model_worth if pays else best_worth):
            return Draft(note=DraftNote(reason="to compare"))
        if model is None:
            return best
        if gain_s > 0 and not pays:
            return best if len(best) else best.noted(reason="too much to read first")
        first = len(context) == self._prompt_length  # no trial delays the first token
        if not pays and (first or not self._exploration.probe_drafter(self._catch_up_s() - gain_s)):
            return best
        draft = self._drafted(model, context, k, allowed)
        look = self.probing and len(draft) > 0  # a probe also shows what it takes to verify
        if draft.kind == "sampled" or look:  # whether a drawn token is verified must not depend on which it was
            return draft.noted(by=model.drafter.name, expected=sum(model.chances(draft)))
        offers.append((model.drafter.name, self._with_tail(model, draft, context, k, allowed)))
        best, _ = worth.choose(offers, k, "the model was not sure")  # the time to draft is spent, whatever comes of it
        return best

    def width(self, tokens: int, context_length: int) -> int:
        return self.target_s.width(tokens, context_length)

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        forced = self._worth.length - (len(context) - len(verdict.tokens))  # tokens in front of what was drafted
        for candidate in self._all:
            candidate.learn(verdict.tokens[forced:])
            candidate.drafter.commit(context, draft, verdict, step)

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        for candidate in self._all:
            candidate.drafter.observe(start, tokens, hidden)

    def update(self, round_: Round) -> None:
        context, width, worth = self._worth.length, round_.width, self._worth
        expected_s = self.target_s.expected(width, context)
        self.target_s.update(round_.tokens, context, width, None if round_.read else round_.target_s)
        if round_.read:  # what it took is not of decoding alone
            return
        seconds = cut_outlier(round_.target_s, expected_s) + round_.host_s
        unusual_s = 0.0  # more than one token is not read every round
        if self._drafting is not None and self._drafting.steps:
            seconds += round_.draft_s
            unusual_s = self._drafting.learn_cost(round_.draft_s)
        worth.update(round_.committed, seconds - unusual_s, round_.host_s)
        lost_s = seconds - round_.committed / worth.rate
        self._exploration.update(seconds, lost_s, verified=round_.evaluated > 0, accepted=round_.accepted > 0)

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

    def _offers(self, context: Sequence[int], k: int, allowed: Allowed | None) -> list[Offer]:
        """What the free drafters propose."""
        offers = []
        for candidate in self._asked:
            candidate.proposed = candidate.drafter.propose(context, k, allowed).within(allowed)
            if len(candidate.proposed):
                offers.append((candidate.drafter.name, candidate.branches(candidate.proposed)))
        return offers

    def _catch_up_s(self) -> float:
        """What it takes the model to read what it has not, beyond the step that a draft begins with anyway."""
        assert self.model and self.draft_s
        length = self._worth.length
        return self.draft_s.read_s(max(0, self.model.unread_tokens(length) - 1), length)

    def _worth_catching_up(self, gain_s: float, k: int) -> bool:
        """Whether the text will go on for long enough: as long as texts do, or as long again as it has, if there is
        room.

        gain_s: in a round, of two tokens or so. k: room, and ``longest`` is any.
        """
        written = self._worth.length - self._prompt_length
        any_room = min(self.longest, self.target_s.widths[-1] - 1)
        left = k if k < any_room else max(_TEXT_TOKENS - written, written)
        return self._catch_up_s() <= max(0.0, gain_s) * left / 2

    def _probes_plain(self, best: float) -> bool:
        """Whether to draft nothing, although ``best`` is what a round with a draft is worth.

        Not where that shows nothing: forced tokens or the pinned width make the forward as wide, or the text is new.
        """
        worth = self._worth
        if self.target_s.switch_is_expensive or worth.forced or worth.length == self._prompt_length:
            return False
        return self._exploration.probe_plain((best - 1.0) / worth.rate + worth.round_s(0), worth.rate * worth.plain_s)

    def _drafted(self, model: Candidate, context: Sequence[int], k: int, allowed: Allowed | None) -> Draft:
        """By the model, as far as it pays."""
        assert self.model and self.draft_s
        rule = StopRule(self._worth, model, self.draft_s, self.model.unread_tokens(len(context)))
        draft = model.proposed = self.model.propose_while(
            context, 1 if self.probing else k, rule.is_worth_step, allowed
        )
        self._drafting = rule
        if rule.steps and not len(draft):  # it took its time and found no token that is allowed: as good as a miss
            model.by_position.update(0, False)
        return draft

    def _with_tail(
        self, model: Candidate, draft: Draft, context: Sequence[int], k: int, allowed: Allowed | None
    ) -> list[Branch]:
        """The model's draft and, behind its end, what the first free drafter with something to say would add: that
        costs rows only, and is cut like the rest."""
        branches = model.branches(draft)
        if not len(draft) or len(draft) >= k:
            return branches
        longer = [*context, *draft.tokens]
        chances = tuple(model.chances(draft))
        for candidate in self._asked:
            behind = None if allowed is None else lambda tokens: allowed([*draft.tokens, *tokens])
            tail = candidate.drafter.propose(longer, k - len(draft), behind).within(behind)
            if len(tail) and tail.tree is None:
                of_tail = tuple(chances[-1] * chance for chance in candidate.chances(tail))
                whole = Branch(draft.tokens + tail.tokens, chances + of_tail)
                return [whole, *(branch for branch in branches if branch.tokens != draft.tokens)]
        return branches
