"""A loaded plan at work: it reads a prompt and writes two answers, as engines are compared (``engine_trial``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from time import perf_counter
from typing import cast

from edgespec.engine_trial import EDIT, LONGEST_EDIT, LONGEST_PROMPT, PROMPT, Following
from edgespec.machine import energy
from edgespec.machine.engine_comparison import Pace
from edgespec.machine.plans import Plan
from edgespec.pipeline import Pipeline
from edgespec.protocols import Model
from edgespec.stats import Stats

WRITTEN = 32
"""tokens of the free text"""
LEAST_SHARE = 0.5
"""Of the answers, what is written at least. A first round may write 17 tokens of the edit, and is not timed."""
LEAST_GAIN = 0.98
"""Of the first plan's time: two measurements of one plan differ by as much."""
_BEHIND_ONCE, _BEHIND = 3.0, 1.3
"""Times as long in one turn, and in each of several. Another program on one of two cores makes a turn about twice as
long, so below three times a single turn decides nothing. That two turns in a row are so by a third is no noise: one
plan's turns differ by a tenth (docs/log/devices.md)."""


@dataclass(frozen=True)
class Length:
    """Of a turn. share: the part of both answers that is written. repeats: how often both are. What is drafted depends
    on measured times, so an answer takes more rounds one time than another."""

    share: float = 1.0
    repeats: int = 1


WHOLE = Length()


class Runner:
    """A loaded plan. text: what it writes; empty: what it likes, which is ``written`` then."""

    def __init__(self, plan: Plan, pipeline: Pipeline, text: Sequence[int] = (), length: Length = WHOLE) -> None:
        self.plan, self.pipeline, self.length = plan, pipeline, length
        self.prompt = pipeline.tokenizer.encode(PROMPT, raw=True)[:LONGEST_PROMPT]
        self.edit = pipeline.tokenizer.encode(EDIT)[:LONGEST_EDIT]
        self.target = pipeline.target
        self.turns: list[Pace] = []
        self.joules: float | None = None
        self.metered = False
        self.written = list(text)
        if not self.written:
            self.written, _ = self._write([], WRITTEN)
        self.warm_up = self.turn()  # sets things up, and learns what drafts are worth
        self.turns.clear()

    def turn(self) -> Pace:
        """Read the prompt, write both answers."""
        self.target.cache.reset()
        began = perf_counter()
        self.target.prefill(self.prompt[:-1])
        read_s = (perf_counter() - began) / (len(self.prompt) - 1)
        before = energy.read_joules()
        write_s, copy_s = [], []
        for _ in range(self.length.repeats):
            write_s.append(self._write(self.written, self._part(self.written))[1])
            copy_s.append(self._write(self.edit, self._part(self.edit))[1])
        used = energy.joules_between(before, energy.read_joules())
        if used is not None:
            written = self.length.repeats * (self._part(self.written) + self._part(self.edit))
            self.metered, self.joules = True, used / written
        self.turns.append(Pace(read_s, mean(write_s), mean(copy_s)))
        return self.turns[-1]

    @property
    def best(self) -> Pace:
        """The turn that was disturbed least."""
        return min(self.turns or [self.warm_up], key=lambda pace: pace.use_s)

    def length_within(self, seconds: float, least_share: float = LEAST_SHARE) -> Length:
        """With which a turn takes so long, by the best one so far."""
        pace = self.best
        answers_s = pace.write_s * len(self.written) + pace.copy_s * len(self.edit)
        fits = (seconds - pace.read_s * len(self.prompt)) / answers_s
        return Length(min(1.0, max(least_share, fits)), max(1, round(fits)))

    def _part(self, answer: Sequence[int]) -> int:
        return max(1, round(self.length.share * len(answer)))

    def _write(self, text: Sequence[int], tokens: int) -> tuple[list[int], float]:
        """An answer to the prompt that begins with ``text``, and the seconds of a token. They include what the draft
        model takes to read the prompt, which it does before the first round or in it."""
        self.pipeline.forget()
        self.target.prefill(self.prompt[:-1])
        self.pipeline.target = cast("Model", Following(self.target, [*self.prompt, *text]))
        try:
            result = self.pipeline.generate(self.prompt, max_new_tokens=tokens, ignore_eos=True)
        finally:
            self.pipeline.target = self.target
        stats = result.stats
        if not self.metered:
            drafts_on = self.plan.draft_model.device if self.plan.draft_model else None
            self.joules = energy.modelled_joules(stats, self.plan.target.device, drafts_on) / stats.decoded
        once_s = stats.prefill_s + _late_s(stats)  # the same for a part of an answer as for all of it
        rest_s = stats.prefill_s + stats.decode_s - once_s
        return result.token_ids, once_s / max(len(text), tokens) + rest_s / stats.decoded


def _late_s(stats: Stats) -> float:
    """How much longer than the others the first overlapped round took, in which the draft model reads the prompt."""
    first, *others = (round_.draft_s + round_.target_s + round_.host_s for round_ in stats.decoding)
    if stats.schedule == "synchronous" or not others:
        return 0.0
    return max(0.0, first - median(others))


def ratio_in_turns(first: Runner, other: Runner, number: int) -> float:
    """Of the other one's time to the first one's, in a turn each. number: of the turn; who begins changes."""
    order = (first, other) if number % 2 == 0 else (other, first)
    seconds = {runner: runner.turn().use_s for runner in order}
    return seconds[other] / seconds[first]


def is_behind(ratios: Sequence[float], slack: float = 1.0) -> bool:
    """Whether who took so many times as long, turn by turn, is slower for sure. One turn may be disturbed.

    >>> is_behind([2.9]), is_behind([3.1]), is_behind([1.5, 1.4]), is_behind([2.9, 1.0]), is_behind([])
    (False, True, True, False, False)
    """
    return bool(ratios) and min(ratios) > slack * (_BEHIND_ONCE if len(ratios) == 1 else _BEHIND)
