"""What the loop writes is distributed as the target says: real loop, real drafter, real verification, many seeds.

The first three tokens are counted and compared with their probabilities by enumeration: all three together, and each
alone. Seeds are fixed, so a test that passes does so for good. The same tests must fail when the rule is broken: every
way to get it wrong that we could think of is put into the real code in turn.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import power_divergence

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.calibration import ForwardTimes
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.fake import FakeModel, Table, random_table
from edgespec.decode.speculative import speculative
from edgespec.decode.verify import residual, without
from edgespec.drafters.first_match import FirstMatch
from edgespec.drafters.ngram import NGram
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.small_model import SmallModel
from edgespec.pipeline import Pipeline
from edgespec.protocols import Constraint, Drafter
from edgespec.sampling import ACCEPT, CORRECT, DRAFT, adjust, distribution, pick, probabilities, uniform
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Allowed, Distribution, Draft, Logits, Step, Verdict
from tests.policies import fixed

VOCAB = 5
PROMPT = [1, 0, 2, 0, 2]
TOKENS = 3
SEEDS = 900
ALPHA = 1e-5  # about 100 p-values are looked at: together they would fail a right rule once in a thousand suites

BASE = np.log(np.array([0.36, 0.27, 0.19, 0.12, 0.06])).astype(np.float32)


def moving(row: Logits) -> Table:
    """What comes next depends on the last two tokens."""
    rows = [np.roll(row, by) for by in range(len(row))]
    return lambda text: rows[(text[-1] + 2 * text[-2]) % len(row)]


def always(*probs: float) -> Table:
    row = np.log(np.array(probs, np.float32))
    return lambda text: row


def masked(row: Logits, *forbidden: int) -> Logits:
    row = row.copy()
    row[list(forbidden)] = -np.inf
    return row


TARGET = moving(BASE)
HOLES = moving(masked(BASE, 3, 4))
CLOSE = moving(BASE + np.array([-0.5, 0.4, 0.0, 0.5, -0.2], np.float32))
REVERSED = moving(BASE[::-1].copy())
SURE = moving(BASE * 6)
ELSEWHERE = moving(masked(BASE[::-1], 0, 1, 2))  # only where HOLES is not
ACROSS = moving(masked(BASE[::-1], 0, 3))  # mass where HOLES has none, none where HOLES has most


def chain(table: Table) -> SmallModel:
    return SmallModel(FakeModel(table, VOCAB, capacity=32), VOCAB)


def arbiter(table: Table) -> Arbiter:
    """Lookup and a model, each round one of them as far as it pays: a draft's length depends on what was drawn."""
    times = [ForwardCost(ForwardTimes((1, 3), 0, 1, at, at)) for at in ((1.0, 1.4), (0.1, 0.1))]
    return Arbiter([NGram()], chain(table), target_s=times[0], draft_s=times[1])


def trimmed() -> SmallModel:
    """Knows three of the five ids, in another order, and reads the others as unknown."""
    ids = np.array([4, -1, 0, 2], np.int32)
    reads = np.array([2, 1, 3, 1, 0])
    model = FakeModel(lambda text: CLOSE(tuple(int(ids[token]) for token in text))[ids], 4, capacity=32)
    return SmallModel(model, VOCAB, id_map=ids, reads=reads)


class Siblings(NoDrafter):
    """A tree: ``width`` different first tokens, and after each of them ``width`` second ones, drawn from ``table``."""

    def __init__(self, table: Table, width: int) -> None:
        self.table, self.width = table, width

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        self.params = params

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        if k < 2:
            return Draft()
        parents, tokens, probs = [], [], []
        texts = [tuple(context)]
        for row in range(1 + self.width):
            first = left = self.distribution(texts[row])
            for _ in range(min(self.width, len(first.ids))):
                parents.append(row)
                tokens.append(pick(left, uniform(self.params.seed, DRAFT, len(context), 99 + len(tokens))))
                probs.append(first)
                texts.append((*texts[row], tokens[-1]))
                left = without(left, tokens[-1])
        return Draft(tuple(tokens), tuple(parents), "sampled", tuple(probs))

    def distribution(self, text: Sequence[int]) -> Distribution:
        return distribution(adjust(self.table(tuple(text)), text, self.params), self.params)


class Peeking(NoDrafter):
    """Drafts two tokens; where the second was never looked at, it drafts that position again only if it was a 0.

    Allowed, since what was never looked at tells nothing about the text: as long as the new draw is a new one.
    """

    def __init__(self, table: Table) -> None:
        self.inner = chain(table)

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        self.inner.begin(context, params)
        self.drawn: dict[int, int] = {}

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        if self.drawn.get(len(context), 0) > 0:
            return Draft()
        draft = self.inner.propose(context, k)
        self.drawn = {len(context) + 1: draft.tokens[1]} if len(draft) == 2 else {}
        return draft

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        self.inner.commit(context, draft, verdict, step)


Parts = tuple[Table, Callable[[], Drafter | Arbiter]]
WORLDS: dict[str, Parts] = {
    "equal": (TARGET, lambda: chain(TARGET)),
    "close": (TARGET, lambda: chain(CLOSE)),
    "reversed": (TARGET, lambda: chain(REVERSED)),
    "too sure": (TARGET, lambda: chain(SURE)),
    "disjoint": (HOLES, lambda: chain(ELSEWHERE)),
    "zero mass": (HOLES, lambda: chain(ACROSS)),
    "trimmed": (TARGET, trimmed),
    "arbiter": (TARGET, lambda: arbiter(CLOSE)),
    "arbiter, reversed": (TARGET, lambda: arbiter(REVERSED)),
    "peeking": (always(0.4, 0.15, 0.15, 0.15, 0.15), lambda: Peeking(always(0.4, 0.01, 0.01, 0.01, 0.57))),
    "two siblings": (TARGET, lambda: Siblings(CLOSE, 2)),
    "two siblings reversed": (TARGET, lambda: Siblings(REVERSED, 2)),
    "two siblings too sure": (TARGET, lambda: Siblings(SURE, 2)),
    "three siblings": (TARGET, lambda: Siblings(REVERSED, 3)),
    "siblings with zero mass": (HOLES, lambda: Siblings(ACROSS, 3)),
}
PLAIN: dict[str, Any] = {"temperature": 1.0}
SPARSE: dict[str, Any] = {"temperature": 1.3, "top_k": 4, "top_p": 0.85, "min_p": 0.1}
PENALTY: dict[str, Any] = {"temperature": 0.8, "repetition_penalty": 1.7, "logit_bias": {1: 0.9}}


def expected(table: Table, vocab: int, settings: dict[str, Any], prompt: Sequence[int]) -> dict[tuple[int, ...], float]:
    """Probability of each text of TOKENS tokens that has any, by enumeration of plain decoding."""
    params = SamplingParams(**settings)
    texts = {(): 1.0}
    for _ in range(TOKENS):
        longer = {}
        for text, mass in texts.items():
            context = (*prompt, *text)
            probs = probabilities(adjust(table(context), context, params), params)
            longer |= {(*text, int(token)): mass * probs[token] for token in np.flatnonzero(probs)}
        texts = longer
    return texts


class Rules:
    """A constraint: 1 is followed by 3 and nothing else, 0 by 1 or 2, no text begins with 3, nothing comes twice."""

    def __init__(self) -> None:
        self.text: list[int] = []

    def allowed(self, ahead: Sequence[int]) -> NDArray[np.bool_]:
        last = [-1, *self.text, *ahead][-1]
        may = {-1: [0, 1, 2, 4], 0: [1, 2], 1: [3]}.get(last, [token for token in range(VOCAB) if token != last])
        return np.isin(np.arange(VOCAB), may)

    def commit(self, tokens: Sequence[int]) -> None:
        self.text += tokens


def ruled(text: tuple[int, ...]) -> Logits:
    return np.where(Rules().allowed(text[len(PROMPT) :]), TARGET(text), -np.inf).astype(np.float32)


def written(
    target: FakeModel,
    drafter: Drafter | Arbiter,
    settings: dict[str, Any],
    prompt: Sequence[int],
    seeds: int,
    rules: Callable[[], Constraint | None] = lambda: None,
) -> Counter:
    texts: Counter[tuple[int, ...]] = Counter()
    for seed in range(seeds):
        context = list(prompt)
        params = SamplingParams(**settings, seed=seed)
        policy = drafter if isinstance(drafter, Arbiter) else fixed(drafter, 2)
        stats = Stats(clock=target.clock)
        loop = speculative(
            target, policy, context, params, stop=(), budget=TOKENS, stats=stats, constraint=rules(),
        )  # fmt: skip
        for _ in loop:
            pass
        texts[tuple(context[len(prompt) :])] += 1
    return texts


def smallest_p_value(texts: Counter, law: dict[tuple[int, ...], float]) -> float:
    """G-tests of all tokens together and of each alone; a text that may not be is certain proof."""
    if not set(texts) <= set(law):
        return 0.0
    smallest = 1.0
    for places in [tuple(range(TOKENS)), *((place,) for place in range(TOKENS))]:
        seen: Counter[tuple[int, ...]] = Counter()
        wanted: Counter[tuple[int, ...]] = Counter()
        for text, mass in law.items():
            part = tuple(text[place] for place in places)
            seen[part] += texts[text]
            wanted[part] += mass * texts.total()
        rare = [part for part in wanted if wanted[part] < 8]  # together one class: the test is for large counts
        observed = [seen[part] for part in wanted if part not in rare] + [sum(seen[part] for part in rare)]
        hoped = [wanted[part] for part in wanted if part not in rare] + [sum(wanted[part] for part in rare)]
        if not rare:
            observed, hoped = observed[:-1], hoped[:-1]
        smallest = min(smallest, float(power_divergence(observed, hoped, lambda_="log-likelihood").pvalue))
    return smallest


@cache
def law_of(table: Table, *settings: tuple[str, Any]) -> dict[tuple[int, ...], float]:
    return expected(table, VOCAB, {name: dict(v) if isinstance(v, tuple) else v for name, v in settings}, PROMPT)


def check(world: str, settings: dict[str, Any]) -> float:
    table, drafter = WORLDS[world]
    key = [(name, tuple(v.items()) if isinstance(v, dict) else v) for name, v in settings.items()]
    target = FakeModel(table, VOCAB, capacity=32)
    return smallest_p_value(written(target, drafter(), settings, PROMPT, SEEDS), law_of(table, *key))


REJECTION = {"verification": "rejection"}


@pytest.mark.parametrize("world", WORLDS)
def test_rejection_preserves_the_targets_distribution(world: str) -> None:
    assert check(world, PLAIN | REJECTION) > ALPHA


@pytest.mark.parametrize(
    ("world", "settings"),
    [("close", SPARSE), ("trimmed", SPARSE), ("trimmed", PENALTY), ("reversed", PENALTY), ("two siblings", SPARSE)],
)
def test_rejection_does_so_for_penalised_and_truncated_distributions(world: str, settings: dict[str, Any]) -> None:
    assert check(world, settings | REJECTION) > ALPHA


@pytest.mark.parametrize(
    ("world", "settings"),
    [("zero mass", PLAIN), ("arbiter", PENALTY), ("reversed", SPARSE), ("two siblings", PLAIN)],
)
def test_coupled_sampling_preserves_it_too(world: str, settings: dict[str, Any]) -> None:
    assert check(world, settings) > ALPHA


CONSTRAINED = {
    "close": lambda: chain(CLOSE),
    "reversed": lambda: chain(REVERSED),
    "trimmed": trimmed,
    "arbiter": lambda: arbiter(CLOSE),
    "lookup": NGram,
}


def check_constrained(drafter: str, settings: dict[str, Any], seeds: int = 600) -> float:
    target = FakeModel(TARGET, VOCAB, capacity=32)
    texts = written(target, CONSTRAINED[drafter](), settings | REJECTION, PROMPT, seeds, Rules)
    return smallest_p_value(texts, expected(ruled, VOCAB, settings, PROMPT))


@pytest.mark.parametrize(
    ("drafter", "settings"), [*((drafter, PLAIN) for drafter in CONSTRAINED), ("close", SPARSE), ("trimmed", PENALTY)]
)
def test_rejection_under_a_constraint_gives_the_distribution_of_plain_constrained_decoding(
    drafter: str, settings: dict[str, Any]
) -> None:
    assert check_constrained(drafter, settings) > ALPHA


def test_a_draft_that_is_drawn_without_the_constraint_and_cut_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Drawn from all tokens and cut where a forbidden one came up, while it claims the distribution it drew from."""

    def cut(forced: Sequence[int], draft: Draft, constraint: Constraint) -> Draft:
        n = 0
        while n < len(draft) and constraint.allowed([*forced, *draft.tokens[:n]])[draft.tokens[n]]:
            n += 1
        certain = tuple(Distribution(np.array([token]), np.ones(1)) for token in forced)
        return replace(
            draft.noted(forced=len(forced)),
            tokens=(*forced, *draft.tokens[:n]),
            scores=(),
            probs=certain + draft.probs[:n] if draft.kind == "sampled" else (),
        )

    unsteered = SmallModel.propose
    monkeypatch.setattr("edgespec.decode.forced_tokens.cut_forbidden", cut)
    monkeypatch.setattr(SmallModel, "propose", lambda self, context, k, allowed: unsteered(self, context, k))
    assert check_constrained("reversed", PLAIN, 1500) < ALPHA


# Wrong rules. Each takes the place of one name in the real code; everything else stays real.


def accept_always(target: Distribution, draft: Distribution, siblings: Sequence[int], seed: int, position: int) -> int:
    return siblings[0]


def correct_from_the_target(
    target: Distribution, draft: Distribution, siblings: Sequence[int], seed: int, position: int
) -> int:
    if uniform(seed, ACCEPT, position, 0) < target.of(siblings[0]) / draft.of(siblings[0]):
        return siblings[0]
    return pick(target, uniform(seed, CORRECT, position))


def ratio_inverted(target: Distribution, draft: Distribution, siblings: Sequence[int], seed: int, position: int) -> int:
    target_prob = target.of(siblings[0])
    if target_prob and uniform(seed, ACCEPT, position, 0) < draft.of(siblings[0]) / target_prob:
        return siblings[0]
    return pick(residual(target, draft), uniform(seed, CORRECT, position))


def residual_not_carried_on(
    target: Distribution, draft: Distribution, siblings: Sequence[int], seed: int, position: int
) -> int:
    left = draft
    for number, token in enumerate(siblings):
        if uniform(seed, ACCEPT, position, number) < target.of(token) / left.of(token):
            return token
        last, left = left, without(left, token)
    return pick(residual(target, last), uniform(seed, CORRECT, position))


def residual_not_normalised(target: Distribution, draft: Distribution) -> Distribution:
    return Distribution(target.ids, residual(target, draft).probs * (1 - _overlap(target, draft)))


def _overlap(target: Distribution, draft: Distribution) -> float:
    return sum(min(target.of(token), draft.of(token)) for token in target.ids.tolist())


VERIFY, SMALL = "edgespec.decode.verify", "edgespec.drafters.small_model"
Wrong = tuple[str, object, str, dict[str, Any]]  # name in the code, what it becomes, world and settings to notice
WRONG: dict[str, Wrong] = {
    "accepts always": (f"{VERIFY}.reject", accept_always, "close", PLAIN),
    "corrects from the target itself": (f"{VERIFY}.reject", correct_from_the_target, "too sure", PLAIN),
    "ratio upside down": (f"{VERIFY}.reject", ratio_inverted, "close", PLAIN),
    "siblings: residual not carried on": (f"{VERIFY}.reject", residual_not_carried_on, "two siblings reversed", PLAIN),
    "siblings: residual not normalised": (
        f"{VERIFY}.residual", residual_not_normalised, "two siblings too sure", PLAIN,
    ),
    "siblings: tried token stays in the draft": (
        f"{VERIFY}.without", lambda draft, token: draft, "two siblings too sure", PLAIN,
    ),
    "siblings: tried token goes, the rest is not normalised": (
        f"{VERIFY}.without",
        lambda draft, token: Distribution(draft.ids, np.where(draft.ids == token, 0.0, draft.probs)),
        "two siblings too sure", PLAIN,
    ),
    "one number for acceptance and correction": (
        f"{VERIFY}.uniform", lambda seed, purpose, position, *sibling: uniform(seed, 0, position), "too sure", PLAIN,
    ),
    "one number for all siblings": (
        f"{VERIFY}.uniform", lambda seed, purpose, position, *sibling: uniform(seed, purpose, position),
        "two siblings too sure", PLAIN,
    ),
    "one number for all positions": (
        f"{VERIFY}.uniform", lambda seed, purpose, position, *sibling: uniform(seed, purpose, *sibling),
        "too sure", PLAIN,
    ),
    "one number for draft and acceptance": (
        f"{SMALL}.uniform", lambda seed, purpose, length, position: uniform(seed, ACCEPT, position, 0),
        "reversed", PLAIN,
    ),
    "one number for draft and correction": (
        f"{SMALL}.uniform", lambda seed, purpose, length, position: uniform(seed, CORRECT, position), "reversed", PLAIN,
    ),
    "one number for a position in all rounds": (
        f"{SMALL}.uniform", lambda seed, purpose, length, position: uniform(seed, purpose, 0, position),
        "peeking", PLAIN,
    ),
    "a greedy draft that calls itself sampled": (
        f"{SMALL}.pick", lambda source, number: int(source.ids[source.probs.argmax()]), "close", PLAIN,
    ),
    "the draft says another distribution than it drew from": (
        f"{SMALL}.pick", lambda source, number: pick(Distribution(source.ids, source.probs**2), number), "close", PLAIN,
    ),
    "target not truncated": (
        f"{VERIFY}.distribution", lambda logits, params: distribution(logits, SamplingParams(params.temperature)),
        "close", SPARSE,
    ),
    "target not penalised": (f"{VERIFY}.adjust", lambda logits, context, params: logits, "close", PENALTY),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_fails_the_same_test(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, wrong, world, settings = WRONG[name]
    monkeypatch.setattr(place, wrong)
    assert check(world, settings | REJECTION) < ALPHA


def test_a_draft_must_say_what_it_was_drawn_from() -> None:
    one = Distribution(np.array([3]), np.array([1.0]))
    for bad in (
        {"tokens": (3,), "kind": "sampled"},
        {"tokens": (3, 3), "kind": "sampled", "probs": (one,)},
        {"tokens": (3,), "probs": (one,)},
    ):
        with pytest.raises(AssertionError):
            Draft(**bad)  # type: ignore[arg-type]


# The algebra, without chance.

weights = st.lists(st.integers(0, 20), min_size=6, max_size=6).filter(any)


def of_weights(numbers: Sequence[int], ids: Sequence[int]) -> Distribution:
    some = [(i, n) for i, n in zip(ids, numbers, strict=True) if n]
    probs = np.array([n for _, n in some], float)
    return Distribution(np.array([i for i, _ in some]), probs / probs.sum())


@settings(deadline=None)
@given(weights, weights, st.permutations(range(6)), st.integers(0, 3))
def test_accepted_and_corrected_together_are_the_target(
    target: list[int], draft: list[int], order: list[int], shift: int
) -> None:
    """min(target, draft) + (1 - sum of it) * residual = target; for sparse distributions in any order of ids."""
    p = of_weights(target, range(6))
    q = of_weights([draft[i] for i in order], [i + shift for i in order])
    accepted = np.array([min(p.of(i), q.of(i)) for i in range(6)])
    left = residual(p, q)
    assert abs(left.probs.sum() - 1) < 1e-12
    total = accepted + (1 - accepted.sum()) * np.array([left.of(i) for i in range(6)])
    assert np.allclose(total, [p.of(i) for i in range(6)], atol=1e-12)


def test_what_is_left_of_a_draft_keeps_its_digits_where_the_tried_token_was_nearly_certain() -> None:
    left = without(Distribution(np.array([0, 1, 2]), np.array([1.0, 3e-20, 1e-20])), 0)
    assert np.allclose(left.probs, [0.75, 0.25])
    assert not len(without(Distribution(np.array([4]), np.array([1.0])), 4).ids)


def test_equal_distributions_leave_the_target_where_rounding_rejects() -> None:
    p = of_weights([3, 4, 5, 0, 0, 0], range(6))
    assert residual(p, p) is p


# Acceptance.


def total_variation(target: Logits, draft: Logits, params: SamplingParams) -> float:
    return float(np.abs(probabilities(target, params) - probabilities(draft, params)).sum() / 2)


def surplus(settings: dict[str, Any], hoped: Callable[[float], float]) -> float:
    """Accepted drafts beyond ``hoped``, in standard deviations. hoped: chance of one draft, given the total variation
    of the two distributions it was drawn from and held against."""
    params = SamplingParams(**settings, seed=8)
    target_table, draft_table = random_table(12, seed=3, scale=1.5), random_table(12, seed=4, scale=1.5)
    target = FakeModel(target_table, 12, capacity=2000)
    drafter = SmallModel(
        FakeModel(lambda text: 0.7 * target_table(text) + 0.5 * draft_table(text), 12, capacity=2000), 12
    )
    assert isinstance(drafter.model, FakeModel)
    context, stats = [1, 2, 3], Stats()
    loop = speculative(target, fixed(drafter, 1), context, params, stop=(), budget=1200, stats=stats)
    difference = variance = 0.0
    length = len(context)
    for tokens in loop:
        if stats.rounds[-1].proposed:
            text = tuple(context[:length])
            chance = hoped(total_variation(target_table(text), drafter.model.table(text), params))
            difference += stats.rounds[-1].accepted - chance
            variance += chance * (1 - chance)
        length += len(tokens)
    return difference / variance**0.5


@pytest.mark.parametrize("settings", [PLAIN, {"temperature": 1.5, "top_k": 5}], ids=["plain", "top_k"])
def test_acceptance_is_the_overlap_for_rejection_and_no_more_for_coupling(settings: dict[str, Any]) -> None:
    """Rejection: 1 - tv exactly. Coupling: between (1 - tv) / (1 + tv) and 1 - tv (Daliri et al. 2024)."""
    assert abs(surplus(settings | REJECTION, lambda tv: 1 - tv)) < 4
    assert surplus(settings, lambda tv: 1 - tv) < -2
    assert surplus(settings, lambda tv: (1 - tv) / (1 + tv)) > -4


# The default pair.


def remembered(model: Any, capacity: int) -> FakeModel:
    """The model's own logits for each text, computed once."""

    @cache
    def table(text: tuple[int, ...]) -> Logits:
        model.prefill(text[:-1])
        row: Logits = model.forward(text[-1:]).logits[0].copy()
        return row

    return FakeModel(table, model.vocab_size, capacity=capacity)


def test_the_default_pairs_first_three_tokens(pipeline: Pipeline) -> None:
    assert isinstance(pipeline.drafter, FirstMatch) and isinstance(pipeline.drafter.last, SmallModel)
    prompt = pipeline.tokenizer.encode("Once upon a time there was a", raw=True)
    settings = {"temperature": 1.2, "top_k": 4} | REJECTION
    capacity = len(prompt) + 8
    target = remembered(pipeline.target, capacity)
    drafter = copy.copy(pipeline.drafter.last)
    drafter.model = remembered(drafter.model, capacity)
    law = expected(target.table, target.vocab_size, settings, prompt)
    assert len(law) == 4**TOKENS
    texts = written(target, drafter, settings, prompt, 400)
    assert smallest_p_value(texts, law) > ALPHA
    assert len({text[0] for text in texts}) == 4


@pytest.mark.slow
def test_the_default_pair_with_its_own_caches(pipeline: Pipeline) -> None:
    prompt = pipeline.tokenizer.encode("Once upon a time there was a", raw=True)
    settings = {"temperature": 1.2, "top_k": 4} | REJECTION
    law = expected(remembered(pipeline.target, 64).table, pipeline.target.vocab_size, settings, prompt)
    texts = Counter(
        tuple(
            pipeline.generate(
                prompt, sampling=SamplingParams(**settings, seed=seed), max_new_tokens=TOKENS, num_draft_tokens=2,
                ignore_eos=True,
            ).token_ids
        )
        for seed in range(600)
    )  # fmt: skip
    assert smallest_p_value(texts, law) > ALPHA
