"""A draft model: its vocabulary, its runner-up, and what it says it drew from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgespec.backends.fake import FakeModel
from edgespec.drafters.small_model import SmallModel
from edgespec.errors import IncompatiblePair
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed
from tests.loop_cases import DRAFTERS, MODES, PROMPT, TABLE, VOCAB, run, softmax, trimmed_on_both_sides


def test_a_draft_for_rejection_says_what_it_was_drawn_from() -> None:
    """Target ids and the softmax over them; in a trimmed vocabulary, after a penalty, and nothing where all is
    forbidden."""
    drafter = trimmed_on_both_sides()
    known = np.array([0, 3, 4, 7, 9, 11, 20])
    logits = drafter.model.table((7, 7, 7, 7))[:7]  # type: ignore[attr-defined]
    for bias in ({}, {3: 1.5, 6: 4.0}):
        drafter.begin([1, 2, 1, 2], SamplingParams(temperature=0.5, verification="rejection", seed=1, logit_bias=bias))
        draft = drafter.propose([1, 2, 1, 2], 1)
        assert draft.kind == "sampled" and draft.tokens[0] in known
        given = dict(zip(draft.probs[0].ids.tolist(), draft.probs[0].probs.tolist(), strict=True))
        biased = logits + np.array([bias.get(int(token), 0.0) for token in known])
        assert given == pytest.approx(dict(zip(known.tolist(), softmax(biased / 0.5).tolist(), strict=True)))
    forbidden = {int(token): -np.inf for token in known}
    drafter.begin([1, 2, 1], SamplingParams(temperature=1, verification="rejection", seed=1, logit_bias=forbidden))
    assert len(drafter.propose([1, 2, 1], 3)) == 0
    drafter.begin([1, 2, 1], SamplingParams(temperature=1, seed=1))
    coupled = drafter.propose([1, 2, 1], 3)
    assert (len(coupled), coupled.kind, coupled.probs) == (3, "deterministic", ())


def test_a_runner_up_is_the_best_token_left_by_penalties_bias_and_constraint() -> None:
    drafter, context = SmallModel(FakeModel(TABLE, VOCAB), VOCAB), [1, 2, 3]
    drafter.alternatives = True
    order = np.argsort(-TABLE(tuple(context))).tolist()
    best, second, third = order[:3]
    assert TABLE(tuple(context))[second] > 0

    def runner_up(allowed: Allowed | None = None, text: Sequence[int] = context, **options: Any) -> int:
        drafter.begin(text, SamplingParams(**options))
        return drafter.propose(text, 1, allowed).alternatives[0][0]

    assert runner_up() == second
    assert runner_up(logit_bias={second: -np.inf}) == third
    assert runner_up(logit_bias={best: -np.inf}) == third
    assert runner_up(lambda drafted: np.arange(VOCAB) != second) == third
    seen = [second, *context[1:]]  # the table reads the last two tokens only
    assert runner_up(text=seen) == second != runner_up(text=seen, repetition_penalty=1000.0)


def test_a_drafter_catches_up_by_one_after_a_miss_and_by_two_after_a_full_accept() -> None:
    for name, width in {"equal": 2, "opposite": 1}.items():
        drafter = DRAFTERS[name]()
        assert isinstance(drafter, SmallModel)
        draft_model = drafter.model
        assert isinstance(draft_model, FakeModel)
        run(drafter, MODES["greedy"], 3, budget=20)
        later = draft_model.widths[4:]  # after prefill and the first round
        assert later[0::3] == [width] * len(later[0::3])


def test_a_draft_trimmed_on_both_sides_reads_its_own_ids_and_proposes_the_targets() -> None:
    ids = np.array([5, 9, -1], np.int32)
    reads = np.full(VOCAB, 2)
    reads[[5, 9]] = 0, 1
    model = FakeModel(lambda text: np.array([0, 1, 9] if text[-1] == 0 else [1, 0, 9], np.float32), 3)
    drafter = SmallModel(model, VOCAB, id_map=ids, reads=reads)
    for params in (SamplingParams(), SamplingParams(repetition_penalty=1.01), SamplingParams(temperature=0.01, seed=1)):
        drafter.begin([7, 5, 9, 5], params)
        assert drafter.propose([7, 5, 9, 5], 3).tokens == (9, 5, 9)
    assert model.cache.tokens[:4] == [2, 0, 1, 0]


def test_a_trimmed_draft_honours_blocked_ids_and_needs_one_to_propose() -> None:
    ids = np.arange(16, 24, dtype=np.int32)
    model = FakeModel(lambda text: np.arange(8, dtype=np.float32), 8)
    drafter = SmallModel(model, VOCAB, id_map=ids, blocked=[23])
    drafter.begin(PROMPT, SamplingParams())
    assert drafter.propose(PROMPT, 3).tokens == (22, 22, 22)
    with pytest.raises(IncompatiblePair, match="no token that it may propose"):
        SmallModel(model, VOCAB, id_map=ids, blocked=ids.tolist())
    with pytest.raises(IncompatiblePair, match="two logits for one token"):
        SmallModel(model, VOCAB, id_map=np.array([1, 2, 1, -1, -1, 3, 4, 5], np.int32))
