"""Drafters alone."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgespec
from edgespec.drafters.ngram import NGram
from edgespec.drafters.text_pool import Pool
from edgespec.errors import SettingError
from edgespec.protocols import Drafter
from edgespec.sampling_params import SamplingParams
from edgespec.types import Draft, Step, Verdict

NOTHING = Step(np.zeros((1, 1), np.float32))


def proposal(text: list[int], k: int, drafter: Drafter | None = None) -> tuple[int, ...]:
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


def sentence(drafter: Pool, prompt: list[int], text: list[int]) -> None:
    """A generation: ``text`` is what the target committed after ``prompt``."""
    drafter.begin(prompt, SamplingParams())
    for end in range(len(prompt) + 1, len(prompt) + len(text) + 1):
        context = [*prompt, *text][:end]
        drafter.commit(context, Draft(), Verdict(0, (context[-1],), (0,)), NOTHING)


def test_what_earlier_generations_wrote_is_proposed() -> None:
    drafter = Pool(100, shortest=2)
    sentence(drafter, [1, 2], [3, 4, 5, 6])
    assert proposal([9, 4, 5], 4, drafter) == (6,)  # the text ends there
    assert proposal([9, 1, 2], 2, drafter) == (3, 4)  # the end of the prompt leads to what was written
    assert proposal([3, 4, 5, 8], 1, drafter) == ()
    assert proposal([4, 5], 0, drafter) == ()
    drafter.reset()
    assert proposal([9, 4, 5], 4, drafter) == ()


def test_prompts_are_not_pooled_and_an_abandoned_generation_is() -> None:
    drafter = Pool(100, shortest=2)
    sentence(drafter, [1, 2, 3, 4, 5, 6, 7, 8], [9])
    assert proposal([0, 2, 3], 1, drafter) == ()
    assert proposal([0, 7, 8], 1, drafter) == (9,)


def test_a_conversation_that_goes_on_pools_every_answer() -> None:
    drafter = Pool(100, shortest=2)
    sentence(drafter, [1, 2], [3, 4, 5])
    sentence(drafter, [1, 2, 3, 4, 5, 10, 11, 12, 13], [7, 8])
    assert proposal([0, 3, 4], 3, drafter) == (5,)
    assert proposal([0, 12, 13], 3, drafter) == (7, 8)


def test_the_oldest_tokens_leave_a_full_pool() -> None:
    drafter = Pool(8, shortest=2)
    sentence(drafter, [1], [2, 3, 4])  # 1 2 3 4 end
    assert proposal([0, 1, 2], 2, drafter) == (3, 4)
    sentence(drafter, [5], [6])  # 5 6 end: full
    assert proposal([0, 1, 2], 2, drafter) == (3, 4)
    sentence(drafter, [7], [8])  # 7 8 end, over 1 2 3
    for gone in ([0, 1, 2], [0, 2, 3]):
        assert proposal(gone, 2, drafter) == ()


def test_a_pool_too_small_for_its_n_grams_is_refused() -> None:
    assert Pool(6)
    for capacity in (0, 1, 5, -1):
        with pytest.raises(SettingError, match="tokens in the pool; got"):
            Pool(capacity)


def test_a_pool_equals_a_search_of_its_last_tokens() -> None:
    rng = random.Random(1)
    hits = 0
    for _ in range(300):
        capacity, k = rng.randint(6, 30), rng.randint(1, 5)
        pool = Pool(capacity, shortest=2)
        everything: list[int] = []
        for _ in range(rng.randint(0, 12)):
            text = rng.choices(range(3), k=rng.randint(0, 12))
            pool.add(text)
            everything += [*text, -1]
        kept = everything[-capacity:]
        for _ in range(5):
            context = rng.choices(range(3), k=rng.randint(0, 6))
            expected: list[int] = []
            for n in (4, 3, 2):
                ends = [i for i in range(n, len(kept)) if kept[i - n : i] == context[-n:] and kept[i] != -1]
                if ends:
                    expected = [*kept[ends[-1] : ends[-1] + k], -1]
                    expected = expected[: expected.index(-1)]
                    break
            assert list(pool.propose(context, k).tokens) == expected
            hits += len(expected)
    assert hits > 500


def test_a_pool_does_not_grow_once_it_is_full() -> None:
    rng = random.Random(1)
    pool = Pool(50, shortest=2)
    for _ in range(200):
        pool.add([rng.randint(0, 9999) for _ in range(rng.randint(0, 30))])
    assert len(pool._continuation) <= 50 * 3 and len(pool._ring) == 50


@pytest.mark.parametrize("kind", ["ngram", "pool"])
def test_a_longer_match_has_a_higher_score(kind: str) -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8]
    scores = []
    for length in range(2, 8):
        drafter: Drafter = NGram() if kind == "ngram" else Pool(100, shortest=2)
        before = [] if kind == "pool" else [*text, 9]
        if isinstance(drafter, Pool):
            drafter.add(text)
        context = [*before, 0, *text[7 - length : 7]]
        drafter.begin(context, SamplingParams())
        draft = drafter.propose(context, 3)
        assert draft.tokens[0] == 8 and len(draft.scores) == len(draft)
        assert list(draft.scores) == sorted(draft.scores), "a token further on has a longer match before it"
        scores.append(draft.scores[0])
    assert scores == sorted(set(scores)) and scores[0] > 0 and scores[-1] < 1


def test_a_match_in_the_pool_ends_where_the_ring_does() -> None:
    pool = Pool(8, shortest=2)
    pool.add([1, 2, 3, 4, 5, 6, 7])  # and an end: full
    pool.add([9])  # 9 and an end, over 1 2
    whole, part = (pool.propose(context, 1) for context in ([1, 2, 3, 4, 5, 6], [3, 4, 5, 6]))
    assert whole.tokens == part.tokens == (7,)
    assert whole.scores == part.scores


def test_a_pair_keeps_its_pool_from_request_to_request_until_it_is_reset(tiny_ir: Path) -> None:
    pipeline = edgespec.load(tiny_ir.parent, numerics="fast")
    assert pipeline.drafter.name == "ngram+pool"

    def by_pool() -> int:
        run = pipeline.generate([5, 6, 7, 8], max_new_tokens=12, ignore_eos=True, num_draft_tokens=3)
        return sum(r.accepted for r in run.stats.by_drafter.get("pool", []))

    assert by_pool() == 0 < by_pool()
    pipeline.drafter.reset()
    assert by_pool() == 0
