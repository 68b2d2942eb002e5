"""The time between tokens: a round's tokens come together."""

from __future__ import annotations

import pytest

from edgespec.stats import Stats, percentile
from edgespec.types import Round


def _round(committed: int, seconds: float) -> Round:
    return Round("ngram", 3, 3, committed - 1, committed, seconds / 4, seconds / 2, seconds / 4)


def test_only_the_first_token_of_a_round_waits_for_it() -> None:
    stats = Stats(rounds=[_round(2, 8.0), _round(3, 0.25), _round(1, 0.5)])
    assert stats.gaps_s == [0, 0.25, 0, 0, 0.5]
    assert (stats.tpot_p50_s, stats.tpot_p95_s, stats.longest_gap_s) == (0, 0.5, 0.5)
    assert len(stats.gaps_s) == stats.committed - 1


def test_the_gaps_of_plain_decoding_are_its_forwards() -> None:
    stats = Stats(rounds=[_round(1, 8.0), *(_round(1, 0.1 * number) for number in range(1, 21))])
    assert stats.tpot_p50_s == pytest.approx(1.0) and stats.tpot_p95_s == pytest.approx(1.9)
    assert stats.longest_gap_s == pytest.approx(2.0)


@pytest.mark.parametrize("rounds", [[], [_round(1, 8.0)]])
def test_one_token_has_no_gap(rounds: list[Round]) -> None:
    stats = Stats(rounds=rounds)
    assert stats.tpot_p50_s is stats.tpot_p95_s is stats.longest_gap_s is None


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0], 0.05) == 3.0
    assert [percentile([4.0, 1.0, 3.0, 2.0], share) for share in (0.0, 0.25, 0.26, 1.0)] == [1, 1, 2, 4]
