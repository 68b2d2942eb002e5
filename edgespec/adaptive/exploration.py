"""When to try what is not expected to pay: only what was tried lately is known, and what trials lose is bounded.

Of two kinds: a draft model that is not chosen drafts a token; a round in a run of rounds that all draft is left without
a draft. Both are paid from one purse, into which a small share of all time goes. What is left is saved, also for the
next text, where a draft model has the least to read. No clock in here.

A model whose token was right is tried again at once; after each miss it rests twice as long, until another text begins.
"""

from __future__ import annotations

from edgespec.adaptive.recent import LATELY_ROUNDS

# Of all time, what trials may lose: a useless draft costs so much for ever. Twice as much loses one percent more.
PROBE_SHARE = 0.01

# Rounds with drafts before one without, where drafts seem to gain nothing. The more they gain, the more a look costs
# and the less it will find. With 50 a wrong calibration costs 5 % for ever, with 25 nothing.
_UNCOMPARED_ROUNDS = 25


class Exploration:
    """probing, probing_plain: what the round that runs is."""

    def __init__(self) -> None:
        self.probing = self.probing_plain = False
        self._unspent_s = 0.0
        self._rest = self._rested = 1  # rounds without the model
        self._uncompared = 0  # rounds with drafts, in a row

    def begin(self) -> None:
        """Another text, for which the model may be better than for the last."""
        self._rest = self._rested = 1

    def begin_round(self) -> None:
        self.probing = self.probing_plain = False

    def probe_drafter(self, lost_s: float) -> bool:
        """Whether to, if it is expected to lose so much, with what the model has to read first."""
        self.probing = self._rested >= self._rest and lost_s <= self._unspent_s
        return self.probing

    def probe_plain(self, lost_s: float, speed_up: float) -> bool:
        """Whether to, if drafts seem to be so much faster than plain decoding, and it is expected to lose so much."""
        self.probing_plain = self._uncompared >= _UNCOMPARED_ROUNDS * speed_up**2 and lost_s <= self._unspent_s
        return self.probing_plain

    def update(self, seconds: float, lost_s: float, *, verified: bool, accepted: bool) -> None:
        """The round took so long, and its tokens would else have taken ``lost_s`` less.

        verified: there were drafted tokens in the forward. accepted: one of them stood.
        """
        self._unspent_s += PROBE_SHARE * seconds
        self._uncompared = self._uncompared + 1 if verified else 0
        self._rested += 1
        if self.probing or self.probing_plain:
            self._unspent_s -= max(0.0, lost_s)
        if self.probing:
            self._rest = 1 if accepted else min(2 * self._rest, LATELY_ROUNDS)
            self._rested = 0
