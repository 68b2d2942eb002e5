"""The loop on the fake backend: parity with the oracle, the invariant, the books, and time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgespec.backends.fake import FakeModel, VirtualClock
from edgespec.decode.autoregressive import autoregressive
from edgespec.decode.policy import FixedLength, Heuristic, Plain
from edgespec.decode.speculative import speculative
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.small_model import SmallModel
from edgespec.errors import SettingError
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Allowed, Draft, Step, Verdict
from tests.books import check_identities
from tests.loop_cases import (
    DRAFTERS,
    LAYERS,
    MODES,
    PROMPT,
    TABLE,
    VOCAB,
    Junk,
    arbiter,
    close_to,
    oracle,
    run,
    softmax,
)
from tests.policies import fixed


class Wrong(NoDrafter):
    """Proposes what no target can verify."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return self.draft


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        (Draft((1, 2), tree=(0, 0)), "got a tree; allowed: a chain"),
        (Draft((1,) * 99), "got 99 tokens; allowed: up to 63"),
        (Draft((1, VOCAB)), f"got token {VOCAB}; allowed: 0 to {VOCAB - 1}"),
        (Draft((-1,)), f"got token -1; allowed: 0 to {VOCAB - 1}"),
    ],
)
def test_what_a_drafter_gets_wrong_is_an_error_of_its_name(draft: Draft, said: str) -> None:
    target = FakeModel(TABLE, VOCAB)
    target.capabilities = replace(target.capabilities, tree=False)
    policy = FixedLength(Wrong(draft), 4)
    with pytest.raises(SettingError, match=f"drafter none proposes what cannot be verified; {said}"):
        list(speculative(target, policy, [1, 2], SamplingParams(), stop=(), budget=8, stats=Stats()))


@pytest.mark.parametrize("k", [0, 1, 2, 4, 8, None])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", DRAFTERS)
def test_output_is_the_oracles_with_any_drafter_mode_and_length(name: str, mode: str, k: int | None) -> None:
    drafter = DRAFTERS[name]()
    context, stats, target = run(drafter, MODES[mode], k)
    assert context == oracle(MODES[mode])
    check_identities(stats.rounds)
    assert stats.committed == len(context) - len(PROMPT)
    assert target.cache.length == len(context) - 1
    again, *_ = run(drafter, MODES[mode], k, target=target)  # caches are right for the next generation too
    assert again == context


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", DRAFTERS)
def test_output_is_the_oracles_where_the_first_forward_reads_the_end_of_the_prompt(name: str, mode: str) -> None:
    drafter = DRAFTERS[name]()
    for k in (0, 1, 4):
        target = FakeModel(TABLE, VOCAB, leaves=8, layers=LAYERS)
        context, stats, _ = run(drafter, MODES[mode], k, target=target)
        assert context == oracle(MODES[mode])
        check_identities(stats.rounds)
        assert list(target.cache.tokens) == context[:-1]
        unread = len(PROMPT) - 1
        assert [r.read for r in stats.rounds] == [unread] + [0] * (len(stats.rounds) - 1)
        assert target.widths[0] == unread + stats.rounds[0].tokens
        assert stats.decoded == stats.committed - stats.rounds[0].committed
        again, stats, _ = run(drafter, MODES[mode], k, target=target)  # nothing is unread this time
        assert again == context and stats.rounds[0].read == 0


def test_an_end_too_long_for_one_forward_with_a_draft_is_read_before() -> None:
    target = FakeModel(TABLE, VOCAB, max_width=40, leaves=40)
    context = [(7 * i) % VOCAB for i in range(50)]  # 40 in a chunk, then 9 and the last one
    expected = list(context)
    for _ in autoregressive(FakeModel(TABLE, VOCAB), expected, SamplingParams(), stop=(), budget=9):
        pass
    stats = Stats(clock=target.clock)
    for _ in speculative(target, Plain(), context, SamplingParams(), stop=(), budget=9, stats=stats):
        pass
    assert context == expected
    assert target.widths == [40, 9] + [1] * 9 and stats.rounds[0].read == 0


def test_the_progress_of_a_prefill_comes_to_its_end() -> None:
    seen: list[tuple[int, int]] = []
    target = FakeModel(TABLE, VOCAB, leaves=8)
    for _ in speculative(
        target, Plain(), list(PROMPT), SamplingParams(), stop=(), budget=3,
        stats=Stats(clock=target.clock), progress=lambda done, total: seen.append((done, total)),
    ):  # fmt: skip
        pass
    assert seen == [(4, 4)]


def test_a_perfect_draft_is_always_accepted_greedy_and_sampled() -> None:
    for mode in ("greedy", "sampled", "truncated", "sampled-penalty"):
        _, stats, target = run(DRAFTERS["equal"](), MODES[mode], 4)
        assert stats.acceptance_rate == 1.0
        assert stats.block_efficiency == 5.0
        assert target.widths[1:] == [5] * 8


def test_noise_is_shared_so_a_close_draft_agrees_more_often_than_chance_would_have_it() -> None:
    """Independent draws from two distributions agree with the sum of products; coupled ones nearly with the overlap."""
    params = SamplingParams(temperature=1.0, seed=1)
    _, stats, _ = run(DRAFTERS["close"](), params, 1, budget=300)
    agree: list[float] = []
    overlap: list[float] = []
    target, draft = FakeModel(TABLE, VOCAB), close_to(5)
    context, *_ = run(NoDrafter(), params, 0, target=target, budget=300)
    for end in range(len(PROMPT), len(context)):
        p, q = (softmax(m.table(tuple(context[:end]))) for m in (target, draft))
        agree.append(float((p * q).sum()))
        overlap.append(float(np.minimum(p, q).sum()))
    assert stats.acceptance_rate is not None
    assert stats.acceptance_rate > float(np.mean(agree)) + 0.1
    assert stats.acceptance_rate > float(np.mean(overlap)) - 0.1


def test_stop_token_and_budget_cut_before_anything_is_committed() -> None:
    plain = oracle(MODES["sampled"])
    for stop, budget in itertools.product([(), (plain[15],), (plain[7],)], [1, 2, 3, 5, 13, 40]):
        expected = oracle(MODES["sampled"], budget, stop)
        for k in (0, 1, 3, 8):
            context, stats, target = run(DRAFTERS["equal"](), MODES["sampled"], k, budget=budget, stop=stop)
            assert context == expected, (stop, budget, k)
            assert target.cache.length == len(context) - 1
            check_identities(stats.rounds)


def test_an_abandoned_generator_leaves_the_caches_right() -> None:
    expected = oracle(MODES["greedy"], 60)
    for rounds in range(1, 6):
        target, drafter, context = FakeModel(TABLE, VOCAB), DRAFTERS["close"](), list(PROMPT)
        loop: Iterator[list[int]] = speculative(
            target, fixed(drafter, 3), context, MODES["greedy"], stop=(), budget=60, stats=Stats()
        )
        for _ in range(rounds):
            next(loop)
        loop.close()  # type: ignore[attr-defined]
        assert target.cache.length == len(context) - 1
        assert list(target.cache.tokens) == context[:-1]
        assert (
            isinstance(drafter, SmallModel)
            and list(drafter.model.cache.tokens) == context[: drafter.model.cache.length]
        )
        rest = speculative(target, fixed(drafter, 3), context, MODES["greedy"], stop=(), budget=30, stats=Stats())
        assert context == expected[: len(context)]
        list(rest)
        assert context == expected[: len(context)] and len(context) >= len(PROMPT) + 30


def test_the_text_goes_on_to_the_last_row_of_the_context() -> None:
    for capacity, k in itertools.product((6, 9, 16, 17), (0, 1, 4, 8)):
        context, *_ = run(DRAFTERS["equal"](), MODES["greedy"], k, target=FakeModel(TABLE, VOCAB, capacity=capacity))
        assert len(context) == capacity + 1  # the last token needs no row
        assert context == oracle(MODES["greedy"])[: capacity + 1]


def test_drafting_never_reaches_past_what_budget_leaves() -> None:
    _, _, target = run(DRAFTERS["equal"](), MODES["greedy"], 8, budget=4)
    assert target.widths[1:] == [4]


def test_every_drafter_is_told_which_token_each_row_of_logits_follows() -> None:
    """Whoever drafted: the rows are the target's answers to the last token before the round, then to the draft's."""
    rounds: list[int] = []

    class Listener(Junk):
        def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
            before = list(context[: len(context) - len(verdict.tokens)])
            seen = [before]
            for index, token in enumerate(draft.tokens):
                seen.append([*seen[index if draft.tree is None else draft.tree[index]], token])
            assert np.array_equal(step.logits, [TABLE(tuple(text)) for text in seen])
            rounds.append(len(draft))

    for mode, k in (("greedy", 4), ("sampled", 4), ("greedy", None)):
        for others in (["trees"], ["ngram", "junk"], ["recycling tree"]):
            drafters: list[list[Any]] = [[DRAFTERS[other]() for other in others] for _ in range(2)]
            alone = arbiter(None, [*drafters[0], Listener()], trees=True)
            run(alone, MODES[mode], k)
            both = arbiter(close_to(5), [Listener(), *drafters[1]])
            run(both, MODES[mode], k)
    assert set(rounds) >= {0, 1, 2, 3, 4}


def test_time_is_where_the_models_say() -> None:
    clock = VirtualClock()
    target = FakeModel(TABLE, VOCAB, clock=clock, forward_s=lambda width: 10.0)
    draft = FakeModel(TABLE, VOCAB, clock=clock, forward_s=lambda width: 1.0)
    _, stats, _ = run(SmallModel(draft, VOCAB), MODES["greedy"], 4, target=target, budget=20)
    assert stats.prefill_s == 11.0
    assert [(r.draft_s, r.target_s, r.host_s) for r in stats.rounds] == [(4.0, 10.0, 0.0)] * 4
    assert stats.decode_s == 56.0


def test_heuristic_follows_transformers_rule() -> None:
    class Obedient(NoDrafter):
        def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
            return Draft((0,) * k)

    policy = Heuristic(Obedient(), k=4)
    step = Step(np.zeros((1, 1), np.float32))
    assert not step.hidden

    def after(proposed: int, accepted: int) -> int:
        from edgespec.types import Round

        policy.update(Round.of("d", Draft((0,) * proposed), Verdict(accepted, (0,), (0,)), step, 0, 0, 0, 0))
        return len(policy.draft(PROMPT, 100))

    assert [after(4, 4), after(6, 2), after(5, 5), after(0, 0)] == [6, 5, 7, 7]
    assert [after(7, 0) for _ in range(9)][-1] == 1
    assert len(policy.draft(PROMPT, 0)) == 0
