"""What the rooms of the runtime ask of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgespec.types import Allowed, Draft, Hidden, Round, SamplingParams, Step, Verdict


class Policy(Protocol):
    """Who drafts, how far, and at which width the target runs: the one whom the loop asks. Used by one thread.

    A call order: ``begin``, then rounds of ``draft``, ``width``, ``commit``, ``observe``, ``update``. A generation may
    end after any of them.
    """

    @property
    def name(self) -> str:
        """Of its drafters; the drafter of a round whose draft names none."""

    @property
    def longest(self) -> int:
        """Rows of a draft, at most. So much of the first forward is kept free of the prompt."""

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        """A new generation starts from ``context``."""

    def draft(self, context: Sequence[int], limit: int, forced: int = 0, allowed: Allowed | None = None) -> Draft:
        """At most ``limit`` rows to follow ``context``; what budget and context leave room for.

        forced: the last tokens of ``context`` that are not committed yet. A constraint allows no others, so they are
            accepted for certain; they are verified in front of the draft.
        allowed: as of ``Drafter.propose``.
        """

    def width(self, tokens: int, context_length: int) -> int:
        """How many rows to run the target's forward of ``tokens`` tokens with; as many at least, the rest is padding.
        Changes nothing: ``Round.width`` says what ran."""

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        """The tokens of a round were added to ``context``: see ``Drafter.commit``."""

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        """The target has read ``tokens``, and they stay: see ``Drafter.observe``. During the prefill, too."""

    def update(self, round_: Round) -> None:
        """The books of the same round: its counts and times."""


class WidthPolicy(Protocol):
    """At which width forwards run, where a change of width costs time (see ``decode.costs``)."""

    def begin(self) -> None:
        """Another text."""

    def width(self, tokens: int, context_length: int) -> int:
        """As of ``Policy``."""

    def update(self, tokens: int, context_length: int, width: int, seconds: float | None) -> None:
        """A forward of ``tokens`` tokens ran at ``width``. seconds: what it took; None if it did other work too."""
