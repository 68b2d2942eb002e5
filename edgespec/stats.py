"""Counters of one generation, and the identities that hold between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from time import perf_counter

from edgespec.types import Round, Schedule

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class IdleRow:
    """What the rows earned that a plain step is padded with: to verify a guess in them costs no time.

    forwards: those that decode only, drafted, and were no wider than a plain step. accepted: tokens of their drafts
        that the target agreed with. share: of all forwards that decode only, those in which it agreed. tok_per_s: what
        these drafts add to the speed of decoding, the time to draft them taken off.
    """

    forwards: int
    accepted: int
    share: float
    tok_per_s: float


@dataclass(frozen=True, slots=True)
class Guessed:
    """What the draft guessed while the target verified (see ``decode.overlapped``).

    kept: guesses that were committed. stale: those that were dropped, since another token was committed before or at
    their place.
    """

    kept: int = 0
    stale: int = 0


@dataclass(slots=True)
class Stats:
    """The counts and times of one generation, written by the loop.

    prompt_tokens, reused_tokens: prompt length, and how much of it the cache still held.
    prefill_s: time until the prompt was in the cache. Its last token, or a deferred end, is left to the first forward.
    rounds: one entry per target forward. plain_width: rows of a forward of one token, padding included.
    guessed: of the overlapped schedule; None under the synchronous one.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefill_s: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    plain_width: int = 1
    guessed: Guessed | None = None
    clock: Clock = perf_counter

    @property
    def proposed(self) -> int:
        return sum(r.proposed for r in self.rounds)

    @property
    def accepted(self) -> int:
        return sum(r.accepted for r in self.rounds)

    @property
    def committed(self) -> int:
        return sum(r.committed for r in self.rounds)

    @property
    def forced(self) -> int:
        return sum(r.forced for r in self.rounds)

    @property
    def schedule(self) -> Schedule:
        return "synchronous" if self.guessed is None else "overlapped"

    @property
    def acceptance_rate(self) -> float | None:
        """accepted / proposed; None if nothing was proposed."""
        return self.accepted / self.proposed if self.proposed else None

    @property
    def block_efficiency(self) -> float | None:
        """Committed tokens per target forward; None before the first."""
        return self.committed / len(self.rounds) if self.rounds else None

    @property
    def reasons(self) -> Counter[str]:
        """Why nothing was drafted, and in how many rounds."""
        return Counter(r.reason or "no draft" for r in self.rounds if r.proposed == 0)

    @property
    def by_drafter(self) -> dict[str, list[Round]]:
        """The rounds that had a draft, by drafter."""
        found: dict[str, list[Round]] = {}
        for r in self.rounds:
            if r.proposed:
                found.setdefault(r.drafter, []).append(r)
        return found

    @property
    def decoding(self) -> list[Round]:
        """The rounds that only decode: all but a first round that also read the end of the prompt."""
        return [r for r in self.rounds if not r.read]

    @property
    def decode_s(self) -> float:
        """Seconds of the rounds that only decode."""
        return sum(r.draft_s + r.target_s + r.host_s for r in self.decoding)

    @property
    def decoded(self) -> int:
        """Tokens of the rounds that only decode."""
        return sum(r.committed for r in self.decoding)

    @property
    def idle_row(self) -> IdleRow | None:
        """None if a plain step has no row to spare, or nothing was decoded.

        >>> wide = Round("ngram", 3, 3, 3, 4, 0.0, 1.0, 0.0, width=4)
        >>> hit, miss = (Round("table", 1, 1, n, 1 + n, 0.0, 1.0, 0.0, width=2) for n in (1, 0))
        >>> Stats(rounds=[hit, miss, wide, hit], plain_width=2).idle_row
        IdleRow(forwards=3, accepted=2, share=0.5, tok_per_s=0.5)
        """
        rounds = self.decoding
        if self.plain_width < 2 or not rounds:
            return None
        drafted = [r for r in rounds if r.evaluated and r.width <= self.plain_width]
        accepted = sum(r.accepted for r in drafted)
        share = sum(r.accepted > 0 for r in drafted) / len(rounds)
        without_s = self.decode_s - sum(r.draft_s for r in drafted)
        gain = self.decoded / self.decode_s - (self.decoded - accepted) / without_s if without_s > 0 else 0.0
        return IdleRow(len(drafted), accepted, share, gain)

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between successive tokens. A round's tokens come together: the first waits for it, the others 0."""
        gaps: list[float] = []
        for r in self.rounds:
            gaps += [r.draft_s + r.target_s + r.host_s, *[0.0] * (r.committed - 1)]
        return gaps[1:]

    @property
    def tpot_s(self) -> float | None:
        """Time per output token: seconds from the first token to the last, over the tokens after the first.

        It does not depend on how tokens are grouped, as the gaps do. None if all came at once.
        """
        return per_token_s(self.gaps_s)

    @property
    def longest_gap_s(self) -> float | None:
        return max(self.gaps_s, default=None)


def per_token_s(gaps_s: Sequence[float]) -> float | None:
    """The mean gap: what one token after the first takes. None if no time lies between the tokens.

    >>> per_token_s([0.0, 0.5, 0.0, 0.5]), per_token_s([0.0]), per_token_s([])
    (0.25, None, None)
    """
    return sum(gaps_s) / len(gaps_s) if any(gaps_s) else None


def percentile(values: Sequence[float], share: float) -> float | None:
    """The least value that is not below ``share`` of all values (nearest rank); None without values.

    >>> percentile([0.4, 0.1, 0.3, 0.2], 0.5)
    0.2
    """
    return sorted(values)[max(ceil(share * len(values)) - 1, 0)] if values else None


def accepted_by_place(rounds: Sequence[Round]) -> list[float]:
    """The acceptance rate at each position of the draft. Counts the rounds that drafted so far and accepted all before
    it."""
    shares: list[float] = []
    while reached := [r for r in rounds if r.longest > len(shares) and r.accepted >= len(shares)]:
        shares.append(sum(r.accepted > len(shares) for r in reached) / len(reached))
    return shares
