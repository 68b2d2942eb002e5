"""Plans that are near one another take turns until it is known which is the fastest, or that it hardly matters."""

from __future__ import annotations

import random
from typing import Any

from edgespec.plan_race import MOST_TURNS, in_rounds, interval
from edgespec.plan_trial import Runner


class Timed(Runner):
    """Its turns take given seconds, and the last ones for ever."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = list(seconds)
        self.turns = []

    def turn(self) -> Any:
        seconds = self._seconds[min(len(self.turns), len(self._seconds) - 1)]
        self.turns.append(seconds)  # type: ignore[arg-type]
        return type("Pace", (), {"use_s": seconds})()


def test_ratios_are_those_of_rounds_that_both_took_part_in() -> None:
    """The first plan leaves when the machine is slow."""
    first, best, other = Timed(16.0), Timed(4.0, 1.0), Timed(4.0, *MOST_TURNS * [1.2, 0.9])
    found = in_rounds(first, [best, other])
    assert len(first.turns) == 1 and found[best] == 0.25 and found[other] == 0.25


def test_who_lost_each_of_five_rounds_leaves() -> None:
    first, other = Timed(1.01), Timed(1.0)
    assert in_rounds(first, [other])[other] == 1 / 1.01
    assert len(first.turns) == len(other.turns) == 5
    first, other, third = Timed(1.01), Timed(1.0), Timed(*MOST_TURNS * [0.9, 1.1])
    in_rounds(first, [other, third])
    assert len(first.turns) == 5 and len(other.turns) == len(third.turns) == MOST_TURNS


def test_plans_that_are_as_good_as_equal_end_the_rounds() -> None:
    """Neither is faster by more than 3 %, for sure."""
    first, other = Timed(1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99), Timed(1.0)
    in_rounds(first, [other])
    assert len(first.turns) == 5


def test_plans_that_are_near_take_more_turns_until_one_is_known_to_be_enough() -> None:
    """Two of eight turns may be disturbed, and then one of eight on either side says nothing."""
    first, other = Timed(0.8, 1.2, 0.8, 1.05), Timed(1.0)
    found = in_rounds(first, [other])
    assert 5 < len(first.turns) < MOST_TURNS and found[other] == 1 / 1.05


def test_what_cannot_be_told_apart_ends_too() -> None:
    first, other = Timed(*MOST_TURNS * [1.1, 0.9]), Timed(1.0)
    in_rounds(first, [other])
    assert len(first.turns) == MOST_TURNS == len(other.turns)


def test_the_interval_of_a_fixed_number_holds_the_median_nine_times_of_ten() -> None:
    """Of a skewed distribution too: a turn that is disturbed takes longer."""
    rng = random.Random(3)
    for count in (5, 7, 12, 21):
        held = 0
        for _ in range(400):
            low, high = interval([1.0 + rng.expovariate(0.6931471805599453) for _ in range(count)])
            held += low <= 2.0 <= high
        assert held >= 0.88 * 400, count


class Noisy(Runner):
    """A turn differs from the next one by 5 %."""

    def __init__(self, seconds: float, rng: random.Random) -> None:
        self.seconds, self.rng, self.taken = seconds, rng, 0

    def turn(self) -> Any:
        self.taken += 1
        return type("Pace", (), {"use_s": self.seconds * self.rng.lognormvariate(0.0, 0.05)})()


def chosen(most: int) -> tuple[int, float]:
    """How often the fastest of four plans is, of 200 times; the next two are 4 % behind. And turns of all four."""
    rng, right, turns = random.Random(1), 0, 0
    for _ in range(200):
        plans = [Noisy(seconds, rng) for seconds in (1.0, 0.89, 0.855, 0.89)]
        found = in_rounds(plans[0], plans[1:], most)
        right += min(found, key=found.__getitem__) is plans[2]
        turns += sum(plan.taken for plan in plans)
    return right, turns / 200


def test_turns_where_plans_are_near_make_the_choice_right_more_often() -> None:
    few, many = chosen(7), chosen(MOST_TURNS)
    print(few, many)
    assert few[0] < 170 < 185 < many[0]
    assert many[1] < 2 * few[1] < 4 * MOST_TURNS, "and most of the turns that there may be are not needed"
