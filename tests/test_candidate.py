"""What a drafter's candidate learns from accepted and rejected tokens."""

from __future__ import annotations

import numpy as np

from edgespec.adaptive.acceptance import ByPosition, ByScore
from edgespec.adaptive.candidate import Candidate
from edgespec.drafters.none import NoDrafter
from edgespec.types import Draft


def test_a_runner_up_that_cannot_be_is_no_branch_and_teaches_nothing() -> None:
    candidate = Candidate(NoDrafter())
    before = candidate.of_alternatives.chance(0.0)
    candidate.proposed = Draft((4, 5), scores=(0.5, 1.0), alternatives=((6, 0.4), (5, 0.0)))
    assert [branch.tokens for branch in candidate.branches(candidate.proposed)] == [(4, 5), (6,)]
    candidate.learn([4, 5])
    assert candidate.of_alternatives.chance(0.0) == before


def test_places_behind_a_miss_and_behind_the_end_teach_nothing() -> None:
    by_position = ByPosition()
    for _ in range(200):
        by_position.update(0, True)
    assert by_position.chance(0) > 0.95
    assert by_position.chance(3) > 0.95, "a place that was never reached is as the one before it"
    for _ in range(200):
        by_position.update(1, False)
    assert by_position.chance(0) > 0.95 and by_position.chance(1) < 0.1
    assert by_position.chance(5) < 0.1


def test_scores_come_to_mean_what_happens() -> None:
    by_score = ByScore()
    assert 0.75 < by_score.chance(0.85) < 0.95, "at first a score is taken for a probability"
    random = np.random.default_rng(0)
    for _ in range(600):
        by_score.update(0.85, bool(random.random() < 0.3))
        by_score.update(0.2, bool(random.random() < 0.6))
    assert abs(by_score.chance(0.85) - 0.3) < 0.2 and abs(by_score.chance(0.2) - 0.6) < 0.2
