"""The overlapped loop: the draft goes on while the target verifies (AMUSD, McDanel 2024, arXiv 2410.17375).

The target's forward is started, and the draft model takes its next steps until the forward is done. These guesses
assume that the target accepts all that it was given, and that its bonus token is the draft's own next token. If so,
they are the next draft, and are there already. If not, they are of an old epoch: they are dropped, and the draft model
goes on from the committed text.

The draft begins no step that is expected to end far behind the target's forward, so it hardly delays the target. If its
first step of a round does end behind it, it sits out the next round, then two, four and more, until a step is in time.
Such rounds are plain steps.

Each committed token is chosen by the target alone, as in ``decode.speculative``. So with exact numerics the tokens are
the same, however the two interleave. With fast numerics they may depend on the widths of forwards, and these depend on
the times of the machine. Only matching is offered: under rejection the tokens would depend on the times in any case.

Deviations from the paper's code: one thread drives both models, since an engine runs a forward by itself. So there is
nothing to acknowledge and nothing to spin on, and an error or an end of one is an end of both. The target never waits
for a second guess, the look-ahead is bounded, and a miss leaves the draft's rows before it.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import prod

from edgespec.decode.constraint import masked
from edgespec.decode.logprobs import Logprobs
from edgespec.decode.verify import check_draft, check_proposed, verify
from edgespec.errors import BackendError
from edgespec.protocols import Constraint, Model, Progress, StepwiseDrafter, WidthPolicy, common_prefix
from edgespec.sampling_params import SamplingParams, require_matching
from edgespec.stats import Clock, Guessed, Stats
from edgespec.types import Draft, Round, Step, Verdict

_LONGEST_PAUSE = 64
"""rounds that a late draft sits out, at most"""

# Of a step, what must be left of the target's forward for a step to begin. With none of it the target waits for half a
# step in each round. With nearly all of it a right draft idles. In simulation either loses up to a tenth.
LEAST_SHARE = 0.6

LEAST_CHANCE = 0.3
"""The least probability, by the draft's own scores, that all guesses are kept, for another step. Two cores on one
memory bus slow each other by a quarter. In simulation texts that are hard to draft lose a tenth without such a bound.
From 0.2 to 0.4 it is the same."""
MOST, LOOK_AHEAD = 4, 8
"""guesses in a forward, and behind the committed text, at most. A draft of a quarter of a forward or more, which this
schedule is for, makes no more of them in time."""


@dataclass
class Guesses:
    """What the draft model has written behind the committed text.

    epoch: how often guesses were dropped. context_length: of the text that they stand behind. tokens, scores: of each
    guess. kept, stale: how many guesses were committed, and how many were dropped.
    """

    epoch: int = 0
    context_length: int = 0
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kept: int = 0
    stale: int = 0

    @property
    def chance(self) -> float:
        """That all of them are right, by the draft's own scores."""
        return prod(self.scores)

    def next_draft(self, n: int) -> Draft:
        """The first of them, to be verified."""
        return Draft(tuple(self.tokens[:n]), scores=tuple(self.scores[:n]))

    def add(self, draft: Draft) -> None:
        self.tokens += draft.tokens
        self.scores += draft.scores or [1.0] * len(draft)

    def committed(self, tokens: tuple[int, ...]) -> None:
        """These tokens were committed. Guesses behind them stay if they begin with them; else all are dropped."""
        self.context_length += len(tokens)
        held = common_prefix(self.tokens, tokens)
        self.kept += held
        if held == len(tokens):
            del self.tokens[:held], self.scores[:held]
        else:
            self.epoch += 1
            self.stale += len(self.tokens) - held
            self.tokens, self.scores = [], []


@dataclass
class _Pause:
    """The rounds that the draft sits out, since a step of it took longer than a forward of the target."""

    length: int = 0
    left: int = 0

    def goes_on(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def late(self) -> None:
        self.length = self.left = min(max(1, 2 * self.length), _LONGEST_PAUSE)

    def in_time(self) -> None:
        self.length = 0


class _Pace:
    """When the forward that runs will be done, by how long forwards of its width took; and what a draft step takes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._forward_s: dict[int, float] = {}
        self._step_s = 0.0
        self._began = self._stepped = self._running = 0.0
        self._width = 0

    def begin(self, width: int) -> None:
        """A forward of the target was started."""
        self._began = self._stepped = self._running = self._clock()
        self._width = width

    def step(self) -> None:
        """The draft has taken a step, and the forward may still run."""
        now = self._clock()
        self._step_s, self._stepped = now - self._stepped, now

    def running(self) -> None:
        """It does."""
        self._running = self._stepped

    def is_worth_a_step(self) -> bool:
        """Whether enough of the forward is left for a step of the draft. True if nothing is known of its width."""
        known_s = self._forward_s.get(self._width)
        return known_s is None or self._began + known_s - self._clock() >= LEAST_SHARE * self._step_s

    def update(self, read: bool) -> None:
        """The forward is done. read: it read a prompt too, and says nothing of its width."""
        if read:
            return
        if self._stepped == self._running:  # the target was waited for
            self._forward_s[self._width] = self._clock() - self._began
            return
        # It ended within a step of the draft. It is not known where, so what was known before holds if it can.
        least_s, most_s = self._running - self._began, self._stepped - self._began
        if not least_s < self._forward_s.get(self._width, 0.0) <= most_s:
            self._forward_s[self._width] = (least_s + most_s) / 2


def overlapped(
    target: Model,
    drafter: StepwiseDrafter,
    context: list[int],
    params: SamplingParams,
    *,
    most: int = MOST,
    look_ahead: int = LOOK_AHEAD,
    least_chance: float = LEAST_CHANCE,
    stop: Collection[int],
    budget: int,
    stats: Stats,
    widths: WidthPolicy | None = None,
    progress: Progress | None = None,
    constraint: Constraint | None = None,
    logprobs: Logprobs | None = None,
) -> Generator[list[int], None, None]:
    """Like ``decode.speculative.speculative``. Raises SettingError for verification by rejection.

    most: guesses verified in one forward, at most. look_ahead: guesses behind the committed text, at most.
    least_chance: that all guesses are kept, by the draft's scores, for it to go on.
    """
    require_matching(params)
    clock, began = stats.clock, stats.clock()
    stats.prompt_tokens, stats.plain_width = len(context), target.capabilities.min_width
    stats.reused_tokens = target.prefill(context[:-1], reserve=1 + most, progress=progress, observe=drafter.observe)
    drafter.begin(context, params, read=False)
    if widths is not None:
        widths.begin()
    stats.prefill_s, stats.guessed = clock() - began, Guessed()
    budget_left = min(budget, target.cache.capacity - len(context) + 1)
    guessing = _Guessing(target, drafter, context, stats, constraint, least_chance)
    guesses = guessing.guesses

    while budget_left > 0:
        t0 = clock()
        draft = guesses.next_draft(min(most, budget_left - 1, target.free_width - 1))
        check_proposed(draft, drafter.name, target.vocab_size)
        check_draft(draft, drafter.name, target)
        width = 1 + len(draft) if widths is None else widths.width(1 + len(draft), len(context))
        step = guessing.forward([context[-1], *draft.tokens], width, min(look_ahead, budget_left))
        t2 = clock()
        assert guesses.context_length == len(context), "guesses of another text"
        verdict = verify(draft, masked(step.logits, draft, constraint), context, params).until(stop, budget_left)
        target.cache.keep(verdict.path)
        context.extend(verdict.tokens)
        if constraint is not None:
            constraint.commit(verdict.tokens)
        if logprobs is not None:
            logprobs.commit(verdict, step.logits)
        guessing.commit(draft, verdict, step)
        stats.guessed = Guessed(guesses.kept, guesses.stale)
        budget_left -= len(verdict.tokens)
        reason = "" if len(draft) else "the draft was not ready"
        noted = draft.noted(by=drafter.name, reason=reason)
        # The draft's time passes while the target runs: it is none of the round's own.
        stats.rounds.append(Round.of(drafter.name, noted, verdict, step, t0, t0, t2, clock()))
        if widths is not None:
            widths.update(1 + len(draft), len(context) - len(verdict.tokens), step.width, None)
        yield list(verdict.tokens)
        if verdict.tokens[-1] in stop:
            return


class _Guessing:
    """The draft model at work beside the target, on the text that is written."""

    def __init__(
        self,
        target: Model,
        drafter: StepwiseDrafter,
        context: list[int],
        stats: Stats,
        constraint: Constraint | None,
        least_chance: float,
    ) -> None:
        self.target, self.drafter, self.context, self.stats = target, drafter, context, stats
        self.constraint, self.least_chance = constraint, least_chance
        self.guesses = Guesses(context_length=len(context))
        self._pause = _Pause()
        self._pace = _Pace(stats.clock)

    def forward(self, tokens: list[int], width: int, most: int) -> Step:
        """A forward of the target, and guesses until it is done or there are ``most``."""
        self.target.start(tokens, width=width)
        self._pace.begin(width)
        try:
            self._go_on(most)
        except BaseException:  # nobody may touch the target's cache while its forward still writes to it
            with suppress(BackendError):
                self.target.wait()
            raise
        step = self.target.wait()
        self._pace.update(step.prompt_rows > 0)
        return step

    def _go_on(self, most: int) -> None:
        guesses, pace, constraint = self.guesses, self._pace, self.constraint
        if len(guesses.tokens) >= most or guesses.chance < self.least_chance or self._pause.goes_on():
            return
        ahead = list(guesses.tokens)
        allowed = None if constraint is None else lambda drafted: constraint.allowed([*ahead, *drafted])

        def go_on(scores: Sequence[float]) -> bool:
            pace.step()
            if not self.target.ready():
                pace.running()
                self._pause.in_time()
                return guesses.chance * prod(scores) >= self.least_chance and pace.is_worth_a_step()
            if len(scores) == 1:
                self._pause.late()
            return False

        draft = self.drafter.propose_while([*self.context, *ahead], most - len(ahead), go_on, allowed)
        guesses.add(draft.within(allowed))

    def commit(self, draft: Draft, verdict: Verdict, step: Step) -> None:
        """The context has this round's tokens. The drafter hears of guesses that still hold as if they were committed
        too, since it has read them and need not forget them."""
        if not self.stats.rounds:  # its first step read the prompt
            self._pause = _Pause()
        self.guesses.committed(verdict.tokens)
        held = (*verdict.tokens, *self.guesses.tokens)
        self.drafter.commit([*self.context, *self.guesses.tokens], draft, replace(verdict, tokens=held), step)
        if step.hidden:
            self.drafter.observe(*step.kept(self.context, verdict))
