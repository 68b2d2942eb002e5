"""What the loop writes is distributed as the target says: real loop, real drafter, real verification, many seeds.

The first three tokens are counted and compared with their probabilities by enumeration: all three together, and each
alone. Seeds are fixed, so a test that passes does so for good. test_wrong_rules breaks the rule.
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
from numpy.typing import NDArray

from edgespec.adaptive.arbiter import Arbiter
from edgespec.backends.fake import FakeModel
from edgespec.drafters.first_match import FirstMatch
from edgespec.drafters.ngram import NGram
from edgespec.drafters.small_model import SmallModel
from edgespec.pipeline import Pipeline
from edgespec.protocols import Constraint, Drafter
from edgespec.sampling_params import SamplingParams
from edgespec.types import Distribution, Draft, Logits
from tests.distributions import (
    ALPHA,
    CLOSE,
    PENALTY,
    PLAIN,
    PROMPT,
    REJECTION,
    REVERSED,
    SPARSE,
    TARGET,
    TOKENS,
    VOCAB,
    WORLDS,
    arbiter,
    chain,
    check,
    expected,
    smallest_p_value,
    trimmed,
    written,
)


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


CONSTRAINED: dict[str, Callable[[], Drafter | Arbiter]] = {
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
    assert check_constrained("reversed", PLAIN, 3000) < ALPHA


def remembered(model: Any, capacity: int) -> FakeModel:
    """The model's own logits for each text, computed once."""

    @cache
    def table(text: tuple[int, ...]) -> Logits:
        model.prefill(text[:-1])
        row: Logits = model.forward(text[-1:]).logits[0].copy()
        return row

    return FakeModel(table, model.vocab_size, capacity=capacity)


@pytest.mark.slow
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
    settings: dict[str, Any] = {"temperature": 1.2, "top_k": 4} | REJECTION
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
