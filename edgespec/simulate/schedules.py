"""The two schedules on a simulated clock, over a text in which each drafted token is right by chance.

They are those of ``decode.speculative`` and ``decode.overlapped``. Synchronous: the draft model drafts k tokens, then
the target verifies them. Overlapped: the target starts at once on what is drafted, and the draft model goes on
meanwhile, as if all that is being verified were right and its next token the target's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf, prod
from random import Random
from typing import Protocol

from edgespec.protocols import WidthPolicy
from edgespec.simulate.figures import Schedule
from edgespec.simulate.forwards import Engine
from edgespec.simulate.timeline import Job, Timeline


@dataclass(frozen=True)
class Placed:
    """A model on a device. start_s: what a draft, or a forward that verifies one, takes more behind the other model.
    Synchronous only."""

    device: str
    forward: Engine
    start_s: float = 0.0


@dataclass(frozen=True)
class Run:
    """A simulated text."""

    tokens: int
    forwards: int
    proposed: int
    accepted: int
    timeline: Timeline

    @property
    def tok_per_s(self) -> float:
        return self.tokens / self.timeline.now_s


@dataclass(frozen=True)
class Guess:
    """right: if all guesses before it are. score: the draft's own probability of it."""

    right: bool
    score: float


class _Text(Protocol):
    """Says of each drafted token whether it is right."""

    def next(self, place: int) -> Guess:
        """place: in the text."""


class _Chance(_Text):
    """Each token is right with the same probability, which the draft knows. The same seed gives the same text."""

    def __init__(self, acceptance: float, seed: int) -> None:
        self.acceptance, self._random = acceptance, Random(seed)

    def next(self, place: int) -> Guess:
        return Guess(self._random.random() < self.acceptance, self.acceptance)


class _Known(_Text):
    """What a draft guesses at each place of a text, over and over."""

    def __init__(self, guesses: Sequence[Guess]) -> None:
        self._guesses = guesses

    def next(self, place: int) -> Guess:
        return self._guesses[place % len(self._guesses)]


def simulate(
    schedule: Schedule,
    target: Placed,
    draft: Placed | None,
    *,
    k: int,
    acceptance: float = 0.0,
    guesses: Sequence[Guess] = (),
    context: int,
    tokens: int,
    bus_gb_per_s: float,
    host_s: float = 0.0,
    waits_for: int = 0,
    least_share: float = 0.0,
    least_chance: float = 0.0,
    widths: WidthPolicy | None = None,
    switch_s: float = 0.0,
    seed: int = 0,
) -> Run:
    """Write a text of so many tokens, or some more, behind ``context`` rows.

    k: tokens drafted in a round, or verified in a forward at most. guesses: at each place of the text, in place of an
    acceptance. host_s: of a round, in no model. Without a draft: plain decoding. Overlapped only: waits_for: the target
    waits until so many tokens are drafted. least_share: of a step, what must be left of the target's forward for
    another step. least_chance: that all guesses are right, for another step. widths: decides the width of a forward.
    switch_s: what a forward takes more behind one of another width.
    """
    timeline = Timeline(bus_gb_per_s)
    text = _Known(guesses) if guesses else _Chance(acceptance, seed)
    if draft is None or k == 0:
        return _plain(timeline, target, context, tokens, host_s)
    if schedule == "synchronous":
        return _synchronous(timeline, text, target, draft, k, context, tokens, host_s)
    return _Overlapped(
        timeline, text, target, draft, k, context, host_s, waits_for, least_share, least_chance, widths, switch_s
    ).run(tokens)


def _plain(timeline: Timeline, target: Placed, context: int, tokens: int, host_s: float) -> Run:
    for _ in range(tokens):
        timeline.wait(timeline.start(target.device, target.forward(1, context), "verify 0"))
        _host(timeline, host_s)
    return Run(tokens, tokens, 0, 0, timeline)


def _synchronous(
    timeline: Timeline,
    text: _Text,
    target: Placed,
    draft: Placed,
    k: int,
    context: int,
    tokens: int,
    host_s: float,
) -> Run:
    written = forwards = proposed = total = 0
    unread = 1  # tokens that the draft model has not read: the last one, and the last guess if all were right
    while written < tokens:
        _host(timeline, draft.start_s)
        for step in range(k):
            width = unread if step == 0 else 1
            timeline.wait(timeline.start(draft.device, draft.forward(width, context), "draft"))
        accepted = 0
        while accepted < k and text.next(written + accepted).right:
            accepted += 1
        _host(timeline, target.start_s)
        timeline.wait(timeline.start(target.device, target.forward(1 + k, context), f"verify {k}"))
        _host(timeline, host_s)
        unread = 2 if accepted == k else 1
        written, forwards = written + accepted + 1, forwards + 1
        proposed, total = proposed + k, total + accepted
    return Run(written, forwards, proposed, total, timeline)


@dataclass
class _Overlapped:
    """See ``simulate``. guesses: drafted behind the committed text."""

    timeline: Timeline
    text: _Text
    target: Placed
    draft: Placed
    most: int
    context: int
    host_s: float
    waits_for: int
    least_share: float
    least_chance: float
    widths: WidthPolicy | None
    switch_s: float
    guesses: list[Guess] = field(default_factory=list)
    written: int = 0
    _width: int | None = None  # of the last forward
    _took_s: dict[int, float] = field(default_factory=dict)  # by width, the last forward

    def run(self, tokens: int) -> Run:
        forwards = proposed = total = 0
        if self.widths is not None:
            self.widths.begin()
        while self.written < tokens:
            while len(self.guesses) < self.waits_for:
                self._step()
            verified = min(self.most, len(self.guesses))
            self._forward(verified)
            accepted = next((place for place in range(verified) if not self.guesses[place].right), verified)
            # The target's own token: the draft's next guess, if it has one and all before were right.
            held = accepted == verified and len(self.guesses) > verified and self.guesses[verified].right
            _host(self.timeline, self.host_s)
            self.guesses = self.guesses[verified + 1 :] if held else []
            self.written, forwards = self.written + accepted + 1, forwards + 1
            proposed, total = proposed + verified, total + accepted
        return Run(self.written, forwards, proposed, total, self.timeline)

    def _forward(self, verified: int) -> None:
        """A forward of the target, and guesses until it is done."""
        width = 1 + verified
        if self.widths is not None:
            width = self.widths.width(1 + verified, self.context)
            self.widths.update(1 + verified, self.context, width, None)
        forward = self.target.forward(width, self.context)
        if self._width not in (None, width):
            forward = replace(forward, seconds=forward.seconds + self.switch_s)
        self._width = width
        job = self.timeline.start(self.target.device, forward, f"verify {verified}")
        self._go_on(job, width)
        self.timeline.wait(job)
        assert job.end_s is not None
        self._took_s[width] = job.end_s - job.begin_s

    def _go_on(self, job: Job, width: int) -> None:
        most_s = self._took_s.get(width, inf)
        while not self.timeline.is_done(job) and len(self.guesses) < 2 * self.most:
            if prod(guess.score for guess in self.guesses) < self.least_chance:
                return
            step_s = self._step()
            if job.begin_s + most_s - self.timeline.now_s < self.least_share * step_s:
                return

    def _step(self) -> float:
        """Returns the seconds of the draft's step."""
        began_s = self.timeline.now_s
        step = self.timeline.start(self.draft.device, self.draft.forward(1, self.context), "draft")
        ended_s = self.timeline.wait(step)
        self.guesses.append(self.text.next(self.written + len(self.guesses)))
        return ended_s - began_s


def _host(timeline: Timeline, seconds: float) -> None:
    if seconds > 0:
        timeline.sleep(seconds)
