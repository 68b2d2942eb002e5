"""What a drafter is to the loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from edgespec.backends.base import Model
from edgespec.types import Allowed, Draft, Hidden, Needs, SamplingParams, Step, Verdict


class Drafter(Protocol):
    """Proposes tokens to follow the context. Owns its own state and catches it up itself; used by one thread.

    A call order: ``begin``, then rounds of ``propose`` and ``commit``. A generation may end after any of them. A class
    that derives from this one writes ``name`` and ``propose``, and of the others those that it has a use for.
    """

    name: str
    remembers: bool = False
    """what it proposes depends on the texts of earlier generations"""
    needs: Needs = Needs()
    """of the target"""
    model: Model | None = None
    """whose forwards its proposals take"""

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        """A new generation starts from ``context``; what an earlier one left may be reused."""
        return

    @abstractmethod
    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        """At most k tokens to follow ``context``; fewer, or none, if it has nothing better. Never a made-up token.

        context: the committed tokens, and under a constraint the forced ones behind them.
        allowed: what the constraint allows after ``context`` and some drafted tokens. A drafter that chooses among
            tokens must choose among these; from others the forbidden ones are cut.
        """

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        """The round is over: ``context`` now ends with ``verdict.tokens``.

        draft: what the target verified; another drafter's where several take turns. ``step.logits`` row 0 follows the
        token that stood before ``verdict.tokens``, row 1 + i follows ``draft.rows[i]``.
        """
        return

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        """The target has read ``tokens``, and they stay: hidden states of the layers it ``needs``, or more.

        start: position of the first. Called for the parts of a prompt before ``begin``, and for each round after
        ``commit``; never for a prefix that the target knew already, so keep what you have. Copy what you keep.
        """
        return

    def reset(self) -> None:
        """Forget every text."""
        return


class StepwiseDrafter(Drafter, Protocol):
    """A drafter for which every token costs time, and which can be stopped after any."""

    model: Model

    def begin(self, context: Sequence[int], params: SamplingParams, *, read: bool = True) -> None:
        """As of any drafter. read: now, and not only when it is asked to propose."""

    def read(self, context: Sequence[int]) -> None:
        """All but the last token, which a proposal begins with."""

    def propose_while(
        self,
        context: Sequence[int],
        k: int,
        go_on: Callable[[Sequence[float]], bool],
        allowed: Allowed | None = None,
    ) -> Draft:
        """As ``propose``; before each further step ``go_on`` is asked with the scores so far whether to take it. A step
        gives one token, and those that a constraint makes certain behind it."""

    def pending(self, length: int) -> int:
        """Tokens of a context of this length that it has not read yet, one at least; 0 where that has no room for a
        step."""


class NoDrafter(Drafter):
    """Proposes nothing: the speculative loop becomes plain decoding."""

    name = "none"

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return Draft()
