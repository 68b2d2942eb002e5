"""Which states a drafting head begins from, and that they are of this text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgespec.drafters.last_state import LastState
from edgespec.sampling_params import SamplingParams

GREEDY = SamplingParams()


def states(*values: float) -> dict[int, np.ndarray]:
    """Of layers 2 and 5, of which only the second is wanted."""
    rows = np.array(values, np.float32)[:, None]
    return {2: -rows, 5: rows}


def value(state: LastState, context: Sequence[int]) -> float | None:
    found = state.after(context)
    return None if found is None else float(found[5][0])


def test_the_state_is_of_the_row_before_the_last_token() -> None:
    state = LastState([5])
    state.observe(0, [1, 2], states(1, 2))
    state.begin([1, 2, 3], GREEDY)
    assert value(state, [1, 2, 3]) == 2 and state.unread_tokens(3) == 1
    assert value(state, [1, 2, 3, 4]) is None, "4 is forced, and its row has not run"
    state.observe(2, [3, 4, 5], states(3, 4, 5))
    assert value(state, [1, 2, 3, 4, 5, 6]) == 5


def test_the_state_is_copied_from_the_buffer_of_the_engine() -> None:
    state, buffer = LastState([5]), states(1, 2)
    state.observe(0, [1, 2], buffer)
    buffer[5][:] = 9
    assert value(state, [1, 2, 3]) == 2


@pytest.mark.parametrize("other", [[1, 9, 3], [1, 2, 3, 4], [1, 2]], ids=["other", "longer", "shorter"])
def test_the_state_of_another_text_is_forgotten(other: list[int]) -> None:
    state = LastState([5])
    state.observe(0, [1, 2], states(1, 2))
    state.begin(other, GREEDY)
    assert value(state, other) is None and state.unread_tokens(len(other)) == 0
    state.observe(len(other) - 1, [7], states(7))  # its first round
    assert value(state, [*other, 7]) == 7


def test_the_next_turn_begins_from_what_is_held() -> None:
    state = LastState([5])
    state.observe(0, [1, 2, 3, 4], states(1, 2, 3, 4))
    state.observe(2, [8, 9], states(8, 9))  # the prompt shares two rows with the text before
    state.begin([1, 2, 8, 9, 10], GREEDY)
    assert value(state, [1, 2, 8, 9, 10]) == 9
    state.begin([1, 2, 8, 9, 10], GREEDY)  # again: all rows are held, and nothing is observed
    assert value(state, [1, 2, 8, 9, 10]) == 9


def test_rows_that_were_read_in_between_do_not_pass_for_known() -> None:
    state = LastState([5])
    state.observe(0, [1, 2], states(1, 2))
    state.observe(6, [7, 8], states(7, 8))  # rows 2 to 5 were read for another drafter
    state.begin([1, 2, 3, 4, 5, 6, 7, 8, 9], GREEDY)
    assert value(state, [1, 2, 3, 4, 5, 6, 7, 8, 9]) is None
    state.observe(8, [9], states(9))
    assert value(state, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]) == 9


def test_by_rejection_a_draft_depends_on_rounds_alone() -> None:
    state, params = LastState([5]), SamplingParams(temperature=1, verification="rejection", seed=1)
    state.observe(0, [1, 2], states(1, 2))
    state.begin([1, 2, 3], params)
    assert value(state, [1, 2, 3]) is None
    state.observe(2, [3], states(3))
    assert value(state, [1, 2, 3, 4]) == 3


def test_reset_forgets() -> None:
    state = LastState([5])
    state.observe(0, [1, 2], states(1, 2))
    state.reset()
    assert value(state, [1, 2, 3]) is None
