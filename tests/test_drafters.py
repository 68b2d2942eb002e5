"""Drafters alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgespec.drafters.ngram import NGram
from edgespec.types import Draft, SamplingParams, Step, Verdict

NOTHING = Step(np.zeros((1, 1), np.float32))


def proposal(text: list[int], k: int, drafter: NGram | None = None) -> tuple[int, ...]:
    drafter = drafter or NGram()
    drafter.begin(text, SamplingParams())
    return drafter.propose(text, k).tokens


def test_longest_match_first_newest_match_first_never_padding() -> None:
    assert proposal([1, 2, 3, 9, 8, 7, 2, 3], 2) == (9, 8)
    assert proposal([2, 3, 4, 0, 2, 3, 5, 0, 2, 3], 1) == (5,)  # newest
    assert proposal([1, 2, 3, 4, 0, 9, 3, 5, 0, 1, 2, 3], 1) == (4,)  # longest: 1 2 3, not 2 3 or 3
    assert proposal([1, 2, 3, 4, 5], 4) == ()
    assert proposal([7], 4) == ()
    assert proposal([1, 2, 1, 2], 0) == ()


def test_a_copy_runs_on_into_itself() -> None:
    assert proposal([5, 1, 2, 1, 2], 5) == (1, 2, 1, 2, 1)
    assert proposal([9, 4, 4, 4], 3) == (4, 4, 4)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 6), st.data())
def test_the_index_equals_a_search_and_may_be_built_in_any_steps(text: list[int], k: int, data: st.DataObject) -> None:
    drafter = NGram()
    cut = data.draw(st.integers(1, len(text)))
    drafter.begin(text[:cut], SamplingParams())
    drafter.commit(text, Draft(), Verdict(0, tuple(text[cut:]), (0,)), NOTHING)
    expected: tuple[int, ...] = ()
    for n in (4, 3, 2):
        starts = [i for i in range(len(text) - n) if text[i : i + n] == text[-n:]] if len(text) > n else []
        if starts:
            longer = list(text)
            for i in range(k):
                longer.append(longer[starts[-1] + n + i])
            expected = tuple(longer[len(text) :])
            break
    assert drafter.propose(text, k).tokens == expected
    assert proposal(text, k, drafter) == expected  # a new generation from the same text
    assert proposal([8, 9, 8, 9], 1, drafter) == (8,)  # and from another
