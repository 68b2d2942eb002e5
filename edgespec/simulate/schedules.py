"""The two schedules on a simulated clock, over a text in which each drafted token is right by chance.

They are those of ``decode.speculative`` and ``decode.overlapped``. Synchronous: the draft model drafts k tokens, then
the target verifies them. Overlapped: the target starts at once on what is drafted, and the draft model goes on
meanwhile, as if all that is being verified were right and its next token the target's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from random import Random

from edgespec.simulate.figures import Schedule
from edgespec.simulate.forwards import Engine
from edgespec.simulate.timeline import Timeline


@dataclass(frozen=True)
class Placed:
    """A model on a device. start_s: what a draft takes beyond its steps."""

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


class _Text:
    """Says of each drafted token whether it is right. The same seed gives the same text."""

    def __init__(self, acceptance: float, seed: int) -> None:
        self.acceptance, self._random = acceptance, Random(seed)

    def next(self) -> bool:
        return self._random.random() < self.acceptance


def simulate(
    schedule: Schedule,
    target: Placed,
    draft: Placed | None,
    *,
    k: int,
    acceptance: float,
    context: int,
    tokens: int,
    bus_gb_per_s: float,
    host_s: float = 0.0,
    waits_for: int = 0,
    least_share: float = 0.0,
    least_chance: float = 0.0,
    seed: int = 0,
) -> Run:
    """Write a text of so many tokens, or some more, behind ``context`` rows.

    k: tokens drafted in a round, or verified in a forward at most. host_s: of a round, in no model. Without a draft:
    plain decoding. Overlapped only: waits_for: the target waits until so many tokens are drafted. least_share: of a
    step, what must be left of the target's forward for another step. least_chance: that all guesses are right, for
    another step.
    """
    timeline = Timeline(bus_gb_per_s)
    text = _Text(acceptance, seed)
    if draft is None or k == 0:
        return _plain(timeline, target, context, tokens, host_s)
    if schedule == "synchronous":
        return _synchronous(timeline, text, target, draft, k, context, tokens, host_s)
    return _overlapped(timeline, text, target, draft, k, context, tokens, host_s, waits_for, least_share, least_chance)


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
        while accepted < k and text.next():
            accepted += 1
        timeline.wait(timeline.start(target.device, target.forward(1 + k, context), f"verify {k}"))
        _host(timeline, host_s)
        unread = 2 if accepted == k else 1
        written, forwards = written + accepted + 1, forwards + 1
        proposed, total = proposed + k, total + accepted
    return Run(written, forwards, proposed, total, timeline)


def _overlapped(
    timeline: Timeline,
    text: _Text,
    target: Placed,
    draft: Placed,
    most: int,
    context: int,
    tokens: int,
    host_s: float,
    waits_for: int,
    least_share: float,
    least_chance: float,
) -> Run:
    written = forwards = proposed = total = 0
    took_s: dict[int, float] = {}  # by width, the last forward
    guesses: list[bool] = []  # drafted behind the committed text: right, if all before are
    while written < tokens:
        while len(guesses) < waits_for:
            _draft(timeline, draft, context, guesses, text)
        width = min(most, len(guesses))
        job = timeline.start(target.device, target.forward(1 + width, context), f"verify {width}")
        while not timeline.is_done(job) and len(guesses) < 2 * most and text.acceptance ** len(guesses) >= least_chance:
            step_s = _draft(timeline, draft, context, guesses, text)
            if job.begin_s + took_s.get(width, inf) - timeline.now_s < least_share * step_s:
                break
        timeline.wait(job)
        assert job.end_s is not None
        took_s[width] = job.end_s - job.begin_s
        accepted = next((place for place in range(width) if not guesses[place]), width)
        # The target's own token: the draft's next guess, if it has one and all before were right.
        held = accepted == width and len(guesses) > width and guesses[width]
        _host(timeline, host_s)
        guesses = guesses[width + 1 :] if held else []
        written, forwards = written + accepted + 1, forwards + 1
        proposed, total = proposed + width, total + accepted
    return Run(written, forwards, proposed, total, timeline)


def _draft(timeline: Timeline, draft: Placed, context: int, guesses: list[bool], text: _Text) -> float:
    """Returns the seconds of the step."""
    began_s = timeline.now_s
    ended_s = timeline.wait(timeline.start(draft.device, draft.forward(1, context), "draft"))
    guesses.append(text.next())
    return ended_s - began_s


def _host(timeline: Timeline, seconds: float) -> None:
    if seconds > 0:
        timeline.sleep(seconds)
