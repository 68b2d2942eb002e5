"""Small targets and drafters, the law of a target by enumeration, and a test of texts against it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy.stats import power_divergence

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.calibration import ForwardTimes
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.backends.fake import FakeModel, Table
from edgespec.decode.speculative import speculative
from edgespec.decode.verify import without
from edgespec.drafters.ngram import NGram
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.small_model import SmallModel
from edgespec.protocols import Constraint, Drafter
from edgespec.sampling import DRAFT, adjust, distribution, pick, probabilities, uniform
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
        assert self.params.seed is not None
        parents: list[int] = []
        tokens: list[int] = []
        probs: list[Distribution] = []
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
    texts: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(TOKENS):
        longer: dict[tuple[int, ...], float] = {}
        for text, mass in texts.items():
            context = (*prompt, *text)
            probs = probabilities(adjust(table(context), context, params), params)
            longer |= {(*text, int(token)): mass * probs[token] for token in np.flatnonzero(probs)}
        texts = longer
    return texts


def written(
    target: FakeModel,
    drafter: Drafter | Arbiter,
    settings: dict[str, Any],
    prompt: Sequence[int],
    seeds: int,
    rules: Callable[[], Constraint | None] = lambda: None,
) -> Counter[tuple[int, ...]]:
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


def smallest_p_value(texts: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """G-tests of all tokens together and of each alone; a text that may not be is certain proof."""
    if not set(texts) <= set(law):
        return 0.0
    smallest = 1.0
    for places in [tuple(range(TOKENS)), *((place,) for place in range(TOKENS))]:
        seen: Counter[tuple[int, ...]] = Counter()
        wanted: defaultdict[tuple[int, ...], float] = defaultdict(float)
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
