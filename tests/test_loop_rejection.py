"""The loop under rejection: what repeats, what depends on the draft, and what does not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edgespec.backends.fake import FakeModel
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft
from tests.books import check_identities
from tests.loop_cases import DRAFTERS, MODES, PROMPT, REJECTION, TABLE, VOCAB, Junk, arbiter, close_to, oracle, run


def test_by_rejection_a_fixed_length_does_not_depend_on_what_is_in_the_cache() -> None:
    """A long one has its room in the first forward, too."""
    drafter, params = DRAFTERS["equal"](), REJECTION["sampled"]
    target = FakeModel(TABLE, VOCAB, leaves=64)
    first, stats, _ = run(drafter, params, 62, target=target, budget=150)
    again, _, _ = run(drafter, params, 62, target=target, budget=150)
    assert first == again and stats.rounds[0].proposed == 62


@pytest.mark.parametrize("mode", REJECTION)
@pytest.mark.parametrize("name", DRAFTERS)
def test_rejection_repeats_and_keeps_books_and_caches(name: str, mode: str) -> None:
    """Which tokens come depends on the draft; a run with the same one is the same run."""
    drafter, params = DRAFTERS[name](), REJECTION[mode]
    for k in (0, 1, 4):
        context, stats, target = run(drafter, params, k)
        check_identities(stats.rounds)
        assert stats.committed == len(context) - len(PROMPT)
        assert list(target.cache.tokens) == context[:-1]
        again, *_ = run(drafter, params, k, target=target)
        assert again == context
        if k == 0 or name in ("none", "junk", "trees", "ngram"):  # nothing was drawn, so nothing is rejected
            assert context == oracle(params)


class Remembering(Junk):
    """Has something to say from its second text on."""

    name = "remembering"
    uses_history = True
    texts = 0

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        self.texts += 1

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return super().propose(context, k, allowed) if self.texts > 1 else Draft()


def test_beside_a_model_rejection_does_not_depend_on_earlier_texts() -> None:
    """Where it drafts, the model does not, and by rejection that would be another text."""
    both = arbiter(close_to(5), [Remembering()])
    first, second = (run(both, REJECTION["sampled"], 4) for _ in range(2))
    assert first[0] == second[0]
    assert set(second[1].by_drafter) == {"small_model"}
    _, coupled, _ = run(both, MODES["sampled"], 4)
    assert set(coupled.by_drafter) == {"remembering", "small_model"}
    alone = arbiter(None, [Remembering()])
    assert [set(run(alone, REJECTION["sampled"], 4)[1].by_drafter) for _ in range(2)] == [set(), {"remembering"}]


def test_rejection_depends_on_the_draft_and_leaves_greedy_alone() -> None:
    texts = {tuple(run(DRAFTERS[name](), REJECTION["sampled"], 4)[0]) for name in ("equal", "close", "trimmed")}
    assert len(texts) == 3
    greedy = SamplingParams(repetition_penalty=1.3, verification="rejection")
    assert run(DRAFTERS["close"](), greedy, 4)[0] == oracle(greedy)


def test_rejection_accepts_a_perfect_draft_always() -> None:
    for params in REJECTION.values():
        _, stats, _ = run(DRAFTERS["equal"](), params, 4)
        assert stats.acceptance_rate == 1.0
