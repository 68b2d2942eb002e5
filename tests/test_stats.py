"""The time per token, and between tokens: those of a round come together."""

from __future__ import annotations

import pytest

from edgespec.stats import Stats, percentile
from edgespec.types import Round


def _round(committed: int, seconds: float) -> Round:
    return Round("ngram", 3, 3, committed - 1, committed, seconds / 4, seconds / 2, seconds / 4)


def test_only_the_first_token_of_a_round_waits_for_it() -> None:
    stats = Stats(rounds=[_round(2, 8.0), _round(3, 0.25), _round(1, 0.5)])
    assert stats.gaps_s == [0, 0.25, 0, 0, 0.5]
    assert (stats.tpot_s, stats.longest_gap_s) == (0.15, 0.5)
    assert len(stats.gaps_s) == stats.committed - 1


def test_the_time_per_token_does_not_depend_on_how_tokens_are_grouped() -> None:
    """As vLLM has it: from the first token to the last, over the tokens but one."""
    alone = Stats(rounds=[_round(1, 8.0), *[_round(1, 0.25)] * 12])
    grouped = Stats(rounds=[_round(1, 8.0), *[_round(4, 1.0)] * 3])
    assert alone.committed == grouped.committed
    assert alone.tpot_s == grouped.tpot_s == 0.25
    assert (alone.longest_gap_s, grouped.longest_gap_s) == (0.25, 1.0)
    assert Stats(rounds=[_round(5, 8.0)]).tpot_s is None, "all tokens came at once"


@pytest.mark.parametrize("rounds", [[], [_round(1, 8.0)]])
def test_one_token_has_no_gap(rounds: list[Round]) -> None:
    stats = Stats(rounds=rounds)
    assert stats.tpot_s is stats.longest_gap_s is None


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0], 0.05) == 3.0
    assert [percentile([4.0, 1.0, 3.0, 2.0], share) for share in (0.0, 0.25, 0.26, 1.0)] == [1, 1, 2, 4]
