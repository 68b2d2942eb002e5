"""The loop on the fake backend: parity with the oracle, the invariant, the books, and time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.calibration import ForwardTimes
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.fake import FakeModel, VirtualClock, random_table
from edgespec.decode.autoregressive import autoregressive
from edgespec.decode.policy import FixedLength, Heuristic, Plain
from edgespec.decode.speculative import speculative
from edgespec.drafters.ngram import NGram
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.recycling import Recycling
from edgespec.drafters.retrieval import Retrieval
from edgespec.drafters.small_model import SmallModel
from edgespec.drafters.text_pool import Pool
from edgespec.errors import IncompatiblePair, SettingError
from edgespec.protocols import Drafter
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats, check_identities
from edgespec.types import Allowed, Draft, Logits, Step, Verdict
from tests.policies import fixed, own_length

VOCAB = 24
TABLE = random_table(VOCAB, seed=3)
PROMPT = [1, 2, 3, 1, 2]

MODES = {
    "greedy": SamplingParams(),
    "penalty": SamplingParams(repetition_penalty=1.3, logit_bias={4: 2.0, 5: -50.0}),
    "sampled": SamplingParams(temperature=0.8, seed=7),
    "truncated": SamplingParams(temperature=1.2, top_k=9, top_p=0.9, min_p=0.02, seed=11),
    "sampled-penalty": SamplingParams(temperature=1.0, repetition_penalty=1.5, seed=2),
}


class Junk(NoDrafter):
    """Proposes nonsense, sometimes less than asked."""

    name = "junk"

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return Draft(tuple((len(context) * 7 + i) % VOCAB for i in range(min(k, len(context) % 5))))


class Trees(NoDrafter):
    """A comb with side branches; the true continuation often hides in a side branch."""

    name = "trees"

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        if k < 3:
            return Draft()
        best = int(TABLE(tuple(context)).argmax())
        after = int(TABLE((*context, best)).argmax())
        return Draft(((best + 1) % VOCAB, best, after), tree=(0, 0, 2))


def close_to(table_seed: int) -> FakeModel:
    noise = random_table(VOCAB, seed=table_seed)
    return FakeModel(lambda text: (TABLE(text) + 0.3 * noise(text)).astype(np.float32), VOCAB)


def trimmed() -> SmallModel:
    ids = np.array([0, 3, 4, 7, 9, 11, 20, 23], np.int32)
    return SmallModel(FakeModel(lambda text: TABLE(text)[ids], len(ids)), VOCAB, id_map=ids, name="trimmed")


def trimmed_on_both_sides() -> SmallModel:
    """Reads by its own ids too; its last row stands for every token it has no id for."""
    ids = np.array([0, 3, 4, 7, 9, 11, 20, -1], np.int32)
    reads = np.full(VOCAB, 7)
    reads[ids[:7]] = np.arange(7)
    model = FakeModel(lambda text: TABLE(tuple(int(ids[token]) for token in text))[ids], len(ids))
    return SmallModel(model, VOCAB, id_map=ids, reads=reads, name="trimmed on both sides")


def padded() -> SmallModel:
    wide = FakeModel(lambda text: np.concatenate([TABLE(text), np.full(8, 99.0, np.float32)]), VOCAB + 8)
    return SmallModel(wide, VOCAB, blocked=(3,), name="padded")


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


DRAFTERS = {
    "none": NoDrafter,
    "junk": Junk,
    "trees": Trees,
    "ngram": NGram,
    "equal": lambda: SmallModel(FakeModel(TABLE, VOCAB), VOCAB),
    "close": lambda: SmallModel(close_to(5), VOCAB),
    "opposite": lambda: SmallModel(FakeModel(lambda text: -TABLE(text), VOCAB), VOCAB),
    "short-context": lambda: SmallModel(FakeModel(TABLE, VOCAB, capacity=20), VOCAB),
    "trimmed": trimmed,
    "trimmed on both sides": trimmed_on_both_sides,
    "padded": padded,
    "pool": lambda: Pool(32, shortest=2),
    "recycling": lambda: Recycling(VOCAB),
    "recycling tree": lambda: Recycling(VOCAB, width=3),
    "retrieval": lambda: retrieval(),
    "arbiter": lambda: arbiter(close_to(5)),
    "arbiter with trees": lambda: arbiter(close_to(5), trees=True),
    "arbiter with a useless model": lambda: arbiter(FakeModel(lambda text: -TABLE(text), VOCAB)),
    "arbiter with look-ups": lambda: arbiter(
        close_to(5), [retrieval(), NGram(), Pool(32, shortest=2), Recycling(VOCAB)]
    ),
    "arbiter with a table alone": lambda: arbiter(None, [Recycling(VOCAB, width=3)], trees=True),
}


def retrieval() -> Retrieval:
    return Retrieval([oracle(MODES["greedy"]), oracle(MODES["sampled"])])


def arbiter(model: FakeModel | None, free: Sequence[Drafter] | None = None, *, trees: bool = False) -> Arbiter:
    times = ForwardTimes((1, 8), 0, 0, (1.0, 1.5), (1.0, 1.5))
    free = [NGram(), Junk()] if free is None else free
    if model is None:
        return Arbiter(free, None, target_s=ForwardCost(times), trees=trees)
    draft_s = ForwardCost(ForwardTimes((1,), 0, 0, (0.1,), (0.1,)))
    small = SmallModel(model, VOCAB)
    small.alternatives = trees
    return Arbiter(free, small, target_s=ForwardCost(times), draft_s=draft_s, trees=trees)


def oracle(params: SamplingParams, budget: int = 40, stop: Sequence[int] = ()) -> list[int]:
    context = list(PROMPT)
    for _ in autoregressive(FakeModel(TABLE, VOCAB), context, params, stop=stop, budget=budget):
        pass
    return context


def run(
    drafter: Drafter | Arbiter,
    params: SamplingParams,
    k: int | None,
    *,
    target: FakeModel | None = None,
    budget: int = 40,
    stop: Sequence[int] = (),
) -> tuple[list[int], Stats, FakeModel]:
    target = target or FakeModel(TABLE, VOCAB)
    policy = own_length(drafter) if k is None else fixed(drafter, k)
    context, stats = list(PROMPT), Stats(clock=target.clock)
    for _ in speculative(target, policy, context, params, stop=stop, budget=budget, stats=stats):
        pass
    return context, stats, target


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
        target = FakeModel(TABLE, VOCAB, leaves=8)
        context, stats, _ = run(drafter, MODES[mode], k, target=target)
        assert context == oracle(MODES[mode])
        check_identities(stats.rounds)
        assert list(target.cache.tokens) == context[:-1]
        unread = len(PROMPT) - 1
        assert [r.read for r in stats.rounds] == [unread] + [0] * (len(stats.rounds) - 1)
        assert target.widths[0] == unread + 1 + stats.rounds[0].evaluated
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


def test_by_rejection_a_fixed_length_does_not_depend_on_what_is_in_the_cache() -> None:
    """A long one has its room in the first forward, too."""
    drafter, params = DRAFTERS["equal"](), REJECTION["sampled"]
    target = FakeModel(TABLE, VOCAB, leaves=64)
    first, stats, _ = run(drafter, params, 62, target=target, budget=150)
    again, _, _ = run(drafter, params, 62, target=target, budget=150)
    assert first == again and stats.rounds[0].proposed == 62


def test_a_perfect_draft_is_always_accepted_greedy_and_sampled() -> None:
    for mode in ("greedy", "sampled", "truncated", "sampled-penalty"):
        _, stats, target = run(DRAFTERS["equal"](), MODES[mode], 4)
        assert stats.acceptance_rate == 1.0
        assert stats.block_efficiency == 5.0
        assert target.widths[1:] == [5] * 8


REJECTION = {
    "sampled": SamplingParams(temperature=0.8, verification="rejection", seed=7),
    "penalty": SamplingParams(temperature=1.1, top_p=0.9, repetition_penalty=1.5, verification="rejection", seed=2),
}


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
        assert given == pytest.approx(dict(zip(known.tolist(), _softmax(biased / 0.5).tolist(), strict=True)))
    forbidden = {int(token): -np.inf for token in known}
    drafter.begin([1, 2, 1], SamplingParams(temperature=1, verification="rejection", seed=1, logit_bias=forbidden))
    assert len(drafter.propose([1, 2, 1], 3)) == 0
    drafter.begin([1, 2, 1], SamplingParams(temperature=1, seed=1))
    coupled = drafter.propose([1, 2, 1], 3)
    assert (len(coupled), coupled.kind, coupled.probs) == (3, "deterministic", ())


def test_noise_is_shared_so_a_close_draft_agrees_more_often_than_chance_would_have_it() -> None:
    """Independent draws from two distributions agree with the sum of products; coupled ones nearly with the overlap."""
    params = SamplingParams(temperature=1.0, seed=1)
    _, stats, _ = run(DRAFTERS["close"](), params, 1, budget=300)
    agree: list[float] = []
    overlap: list[float] = []
    target, draft = FakeModel(TABLE, VOCAB), close_to(5)
    context, *_ = run(NoDrafter(), params, 0, target=target, budget=300)
    for end in range(len(PROMPT), len(context)):
        p, q = (_softmax(m.table(tuple(context[:end]))) for m in (target, draft))
        agree.append(float((p * q).sum()))
        overlap.append(float(np.minimum(p, q).sum()))
    assert stats.acceptance_rate is not None
    assert stats.acceptance_rate > float(np.mean(agree)) + 0.1
    assert stats.acceptance_rate > float(np.mean(overlap)) - 0.1


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


def _softmax(logits: Logits) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


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


def test_a_drafter_catches_up_by_one_after_a_miss_and_by_two_after_a_full_accept() -> None:
    for name, width in {"equal": 2, "opposite": 1}.items():
        drafter = DRAFTERS[name]()
        assert isinstance(drafter, SmallModel)
        draft_model = drafter.model
        assert isinstance(draft_model, FakeModel)
        run(drafter, MODES["greedy"], 3, budget=20)
        later = draft_model.widths[4:]  # after prefill and the first round
        assert later[0::3] == [width] * len(later[0::3])


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
            alone = arbiter(None, [*(DRAFTERS[other]() for other in others), Listener()], trees=True)
            run(alone, MODES[mode], k)
            both = arbiter(close_to(5), [Listener(), *(DRAFTERS[other]() for other in others)])
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
