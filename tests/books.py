"""The books of a generation: counts that may not contradict each other."""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.types import Round


def check_identities(rounds: Sequence[Round]) -> None:
    """Raise AssertionError if the counts of a finished generation contradict each other."""
    for r in rounds:
        assert 0 <= r.accepted <= r.evaluated <= r.proposed, r
        # A stop token or the budget may cut the last round. A cut can only end on an accepted token.
        assert r.committed in (r.forced + r.accepted, r.forced + r.accepted + 1) and r.committed >= 1, r
    for r in rounds[:-1]:
        assert r.committed == r.forced + r.accepted + 1, r
