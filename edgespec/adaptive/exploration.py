"""When to try what is not expected to pay: only what was tried lately is known, and what trials lose is bounded.

Of two kinds: a draft model that is not chosen drafts a token (a probe); a round in a run of rounds that all draft is
left without a draft (a comparison). No clock in here.
"""

from __future__ import annotations

PROBE = 0.01
"""share of the time that may be lost on trials"""
_CREDIT = 1
"""rounds of plain decoding that reading up for a probe may take ahead of its share: the longer the model is left alone,
the more it has to read, and otherwise it would never be tried again"""
_SAVED = 4
"""rounds of plain decoding that one probe may cost, however little was spent before"""
_RESTING, _LONGEST_REST = 8, 32
"""rounds between probes, at least; twice as many after each whose token was wrong, up to the second"""
_UNCOMPARED = 18
"""rounds with drafts before a comparison, where drafts seem to gain nothing; the more they gain, the more rounds"""


class Exploration:
    """probing, comparing: what the round that runs is."""

    def __init__(self) -> None:
        self.probing = self.probing_plain = False
        self._unspent_s = 0.0
        self._rest = self._rested = _RESTING
        self._uncompared = 0

    def begin(self) -> None:
        """A round."""
        self.probing = self.probing_plain = False

    def probe_drafter(self, lost_s: float, read_s: float, plain_s: float) -> bool:
        """Whether to, if it is expected to lose ``lost_s``, and the model has to read first for ``read_s``."""
        spare_s = min(self._unspent_s, _SAVED * plain_s)
        due = self._rested >= self._rest and lost_s <= spare_s
        self.probing = due and lost_s + read_s <= spare_s + _CREDIT * plain_s
        return self.probing

    def probe_plain(self, lost_s: float, speed_up: float) -> bool:
        """Whether to, if drafts seem to be so much faster than plain decoding."""
        often = self._uncompared >= _UNCOMPARED * max(1.0, speed_up) ** 3
        self.probing_plain = often and lost_s <= self._unspent_s
        return self.probing_plain

    def update(self, seconds: float, lost_s: float, *, by_model: bool, verified: bool, accepted: bool) -> None:
        """The round took so long, and its tokens would else have taken ``lost_s`` less.

        by_model: the model took its time, and stood: its first token was the target's too. verified: there were
        drafted tokens in the forward.
        """
        self._unspent_s += PROBE * seconds
        if self.probing or self.probing_plain:
            self._unspent_s -= max(0.0, lost_s)
        self._uncompared = self._uncompared + 1 if verified else 0
        if self.probing:
            self._rested = 0
            self._rest = _RESTING if accepted else min(2 * self._rest, _LONGEST_REST)
        elif by_model:
            self._rest = self._rested = _RESTING
        else:
            self._rested += 1
