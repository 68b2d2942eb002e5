"""A block drafter: exact whatever its head says, and silent where the target's states are missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec.backends.fake import FakeModel, hidden_state
from edgespec.drafters.block import Block
from edgespec.drafters.state_window import StateWindow
from edgespec.errors import IncompatiblePair
from edgespec.sampling_params import SamplingParams
from tests.heads import KnowingGraph, knowing
from tests.loop_cases import MODES, PROMPT, TABLE, VOCAB, oracle, run

LAYERS = (2, 5)
IDS = np.array([t for t in range(VOCAB) if t not in (6, 17)], np.int32)


def head(**options: Any) -> KnowingGraph:
    return KnowingGraph(TABLE, IDS, LAYERS, **options)


def block(graph: KnowingGraph) -> Block:
    drafter = knowing("block", graph, LAYERS, VOCAB)
    assert isinstance(drafter, Block)
    return drafter


def target() -> FakeModel:
    return FakeModel(TABLE, VOCAB, layers=LAYERS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [0.0, 2.0])
def test_the_text_is_that_of_plain_decoding(mode: str, error: float) -> None:
    context, stats, _ = run(block(head(error=error)), MODES[mode], 4, target=target())
    assert context == oracle(MODES[mode])
    assert sum(r.proposed for r in stats.rounds) > 10


def test_a_head_that_knows_the_target_is_accepted_in_greedy_and_in_coupled_sampling() -> None:
    for params in (SamplingParams(), SamplingParams(temperature=1.0, seed=3), SamplingParams(temperature=0.6, seed=1)):
        _, stats, _ = run(block(head()), params, 4, target=target())
        assert sum(r.accepted for r in stats.rounds) > 0.5 * sum(r.proposed for r in stats.rounds), params


def test_the_head_reads_the_rows_in_front_of_the_last_token() -> None:
    graph = head()
    context, _, _ = run(block(graph), SamplingParams(), 4, target=target())
    read = [len(text) for text in graph.texts]
    assert {int(given["count"][0]) for given in graph.read} == {3}, "the prompt has five tokens"
    for length, given in zip(read, graph.read, strict=True):
        rows = [[hidden_state(layer, tuple(context[: row + 1])) for layer in LAYERS] for row in range(length - 1)]
        np.testing.assert_array_equal(given["states"], np.array(rows[-3:]))


def test_by_rejection_tokens_come_from_the_heads_distribution_and_a_draft_ends_where_the_graph_chose_another() -> None:
    params, graph = SamplingParams(temperature=1.0, verification="rejection", seed=5), head()
    drafter = block(graph)
    rows = {layer: np.zeros((4, 4), np.float32) for layer in LAYERS}
    drafter.begin(PROMPT, params)
    drafter.observe(0, PROMPT[:-1], rows)
    assert not len(drafter.propose(PROMPT, 4)), "which rows were held before must not decide the text"
    drafter.observe(len(PROMPT) - 1, PROMPT[-1:], {layer: rows[layer][:1] for layer in LAYERS})
    context = [*PROMPT, 3]
    draft = drafter.propose(context, 4)
    weights = np.exp(TABLE(tuple(context))[IDS].astype(float))
    assert draft.kind == "sampled"
    np.testing.assert_allclose(draft.probs[0].probs, weights / weights.sum(), rtol=1e-5)
    best = IDS[graph.chosen]
    agreed = next((i for i, token in enumerate(draft.tokens) if token != best[i]), len(draft) - 1)
    assert len(draft) == agreed + 1


def test_without_states_there_is_no_draft() -> None:
    drafter = block(head())
    rows = {layer: np.zeros((2, 4), np.float32) for layer in LAYERS}
    drafter.begin([1, 2, 3], SamplingParams())
    assert drafter.unread_tokens(3) == 0 and not len(drafter.propose([1, 2, 3], 4))
    drafter.observe(1, [2, 3], rows)  # nobody told row 0
    assert drafter.unread_tokens(4) == 1 and len(drafter.propose([1, 2, 3, 4], 4)) == 4
    assert len(drafter.propose([1, 2, 3, 4], 9)) == 4 == drafter.longest
    drafter.begin([1, 2, 3, 4], SamplingParams())
    assert drafter.unread_tokens(4) == 0, "row 0 may be another text's"


def test_the_scores_are_the_tokens_probabilities_and_a_draft_stops_by_them() -> None:
    graph = head()
    drafter = block(graph)
    drafter.observe(0, [1, 2], {layer: np.zeros((2, 4), np.float32) for layer in LAYERS})
    drafter.begin([1, 2, 3], SamplingParams())
    whole = drafter.propose([1, 2, 3], 4)
    text, expected = [1, 2, 3], []
    for token in whole.tokens:
        weights = np.exp(TABLE(tuple(text))[IDS].astype(float))
        expected.append(weights.max() / weights.sum())
        text.append(token)
    assert whole.scores == pytest.approx(expected, rel=1e-5)
    draft = drafter.propose_while([1, 2, 3], 4, lambda scores: scores[-1] != whole.scores[1])
    assert draft.tokens == whole.tokens[:2]


def test_other_outputs_of_a_graph_are_not_read() -> None:
    """The confidence of earlier graphs: it tells less than the probabilities do."""
    graph = head()
    graph.outputs = {**graph.outputs, "scores": (4,)}
    drafter = block(graph)
    drafter.observe(0, [1, 2], {layer: np.zeros((2, 4), np.float32) for layer in LAYERS})
    drafter.begin([1, 2, 3], SamplingParams())
    assert len(drafter.propose([1, 2, 3], 4)) == 4


def test_a_constraint_cuts_a_draft_behind_the_first_other_token() -> None:
    graph = head()
    drafter = block(graph)
    drafter.observe(0, [1, 2], {layer: np.zeros((2, 4), np.float32) for layer in LAYERS})
    drafter.begin([1, 2, 3], SamplingParams())
    free = drafter.propose([1, 2, 3], 4).tokens
    allowed = np.ones(VOCAB, bool)
    allowed[free[1]] = False
    found = drafter.propose([1, 2, 3], 4, lambda drafted: allowed).tokens
    assert found[0] == free[0] and found[1] != free[1] and len(found) == 2


def test_a_graph_of_another_kind_is_refused() -> None:
    graph = head()
    with pytest.raises(IncompatiblePair, match="no graph of a block drafter"):
        Block(graph, IDS[:-1], LAYERS, vocab_size=VOCAB)
    with pytest.raises(IncompatiblePair, match="for 1 layers"):
        Block(graph, IDS, (2,), vocab_size=VOCAB)


def window() -> StateWindow:
    found = StateWindow((2,), length=3, width=1)
    found.observe(0, [10, 11, 12, 13], states(0, 1, 2, 3))
    return found


def states(*values: float) -> dict[int, NDArray[np.float32]]:
    return {2: np.array(values, np.float32)[:, None]}


def rows(found: StateWindow) -> list[float]:
    return found.rows[:, 0, 0].tolist()


def test_a_window_rolls_back_with_the_text_and_goes_on_over_chat_turns() -> None:
    found = window()
    assert rows(found) == [1, 2, 3] and found.count(5) == 3 and found.count(4) == 0
    found.observe(2, [14, 15], states(4, 5))  # rows 2 and 3 were taken back
    assert rows(found)[-3:] == [1, 4, 5] and found.count(5) == 3
    found.begin([10, 11, 14, 9, 8], SamplingParams())  # a turn whose text parts from the last at row 3
    assert found.count(5) == 0
    found.observe(3, [9], states(6))
    assert found.count(5) == 3 and rows(found) == [1, 4, 6]
    for place in range(4, 40):
        found.observe(place, [place], states(10 + place))
        assert found.count(place + 2) == 3
    assert rows(found) == [47, 48, 49]


def test_a_window_is_copied_and_never_holds_rows_of_another_text() -> None:
    found, given = window(), states(7)
    found.observe(4, [14], given)
    given[2][:] = 99
    assert rows(found) == [2, 3, 7]
    found.observe(9, [1], states(8))  # rows 5 to 8 were read for another drafter
    assert found.count(11) == 1
    found.begin([9] * 11, SamplingParams())
    assert found.count(11) == 0
    again = window()
    again.begin([10, 11, 12, 13, 1], SamplingParams(temperature=1, verification="rejection", seed=1))
    assert again.count(5) == 0, "which rows were held must not show in a draft for rejection"
    again.observe(4, [1], states(9))
    assert again.count(6) == 1
    again.reset()
    assert again.count(6) == 0
