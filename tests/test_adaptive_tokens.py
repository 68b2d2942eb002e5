"""Adaptive tokens: the target guesses at placeholders behind its last token, and verifies the guesses itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgespec.backends.fake import FakeModel
from edgespec.decode.policy import FixedLength
from edgespec.decode.speculative import speculative
from edgespec.drafters.adaptive_tokens import AdaptiveTokens
from edgespec.errors import SettingError
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Draft, Logits, Step, Verdict
from tests.books import check_identities
from tests.loop_cases import MODES, PROMPT, REJECTION, TABLE, VOCAB, oracle

PLACEHOLDER = VOCAB
BUDGET = 40


def guessing(wrong_at: int | None = None, placeholders: Sequence[int] = (PLACEHOLDER,)) -> FakeModel:
    """A target that reads its own greedy continuation at placeholders. wrong_at: behind so many it is wrong."""

    def table(text: tuple[int, ...]) -> Logits:
        real = text
        while real[-1] in placeholders:
            real = real[:-1]
        behind = len(text) - len(real)
        for _ in range(behind):
            real = (*real, int(TABLE(real).argmax()))
        logits = TABLE(real)
        return -logits if behind and behind - 1 == wrong_at else logits

    return FakeModel(table, VOCAB)


def run(
    target: FakeModel, drafter: AdaptiveTokens, k: int, params: SamplingParams = MODES["greedy"], budget: int = BUDGET
) -> tuple[list[int], Stats]:
    context, stats = list(PROMPT), Stats(clock=target.clock)
    rounds = speculative(target, FixedLength(drafter, k), context, params, stop=(), budget=budget, stats=stats)
    for _ in rounds:
        assert PLACEHOLDER not in target.cache.tokens, "a placeholder is kept"
    check_identities(stats.rounds)
    return context, stats


def drafter(
    k: int, *, one_forward: bool = False, tokens: Sequence[int] = (PLACEHOLDER,), **rows: Any
) -> AdaptiveTokens:
    return AdaptiveTokens(tokens, VOCAB, count=max(1, k), one_forward=one_forward, **rows)


@pytest.mark.parametrize("one_forward", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_any_number_of_guesses_gives_the_tokens_of_plain_decoding(mode: str, one_forward: bool) -> None:
    expected = oracle(MODES[mode], BUDGET)
    for k in range(14):
        for wrong_at in (None, 0, 1):
            found, _ = run(guessing(wrong_at), drafter(k, one_forward=one_forward), k, MODES[mode])
            assert found == expected, (k, wrong_at)


@pytest.mark.parametrize("mode", REJECTION)
def test_rejection_goes_on_when_guesses_are_drawn(mode: str) -> None:
    found, stats = run(guessing(), drafter(3, one_forward=True), 3, REJECTION[mode])
    assert len(found) == len(PROMPT) + BUDGET
    assert stats.accepted > 0


@pytest.mark.parametrize(
    ("one_forward", "tokens_a_forward"),
    [(False, (1 + 4) / 2), (True, 4)],  # a forward that drafts commits one token, one that verifies four
)
def test_perfect_guesses_earn_what_the_scheme_allows(one_forward: bool, tokens_a_forward: float) -> None:
    _, stats = run(guessing(), drafter(3, one_forward=one_forward), 3, budget=400)
    assert stats.block_efficiency == pytest.approx(tokens_a_forward, rel=0.02)


def test_guesses_behind_a_rejected_draft_are_not_used() -> None:
    """They knew a text that was not committed."""
    _, stats = run(guessing(wrong_at=1), drafter(3, one_forward=True), 3)
    drafted = [round_.proposed for round_ in stats.rounds[:-2]]
    assert drafted == [0, 3] * (len(drafted) // 2) + [0] * (len(drafted) % 2)
    assert {round_.accepted for round_ in stats.rounds[:-2] if round_.proposed} == {1}


def test_a_forward_that_drafts_for_nothing_is_never_wider_than_asked() -> None:
    _, stats = run(guessing(), drafter(2), 2)
    assert {(round_.proposed, round_.extra) for round_ in stats.rounds[:-2]} == {(0, 2), (2, 0)}


def test_rows_that_would_be_padding_carry_placeholders() -> None:
    """Forwards of even width: behind a draft of two, a row is free. Its guess is used if the draft was right."""
    _, stats = run(guessing(), drafter(2, least=2, step=2), 2)
    assert [(round_.proposed, round_.extra) for round_ in stats.rounds[:4]] == [(0, 2), (2, 1), (1, 0), (0, 2)]
    _, stats = run(guessing(), drafter(1, least=2), 1)
    assert {1 + round_.proposed + round_.extra for round_ in stats.rounds[:-1]} == {2}


def test_separate_placeholders_come_in_their_order_and_the_last_is_repeated() -> None:
    model = AdaptiveTokens([30, 31], VOCAB, count=4)
    model.begin(PROMPT, SamplingParams())
    assert model.propose(PROMPT, 9).extra == (30, 31, 31, 31)
    assert model.propose(PROMPT, 1).extra == (30,)
    assert model.needs.extra == 4


def test_a_number_of_zero_drafts_nothing() -> None:
    found, stats = run(guessing(), drafter(1), 0)
    assert found == oracle(MODES["greedy"], BUDGET)
    assert stats.block_efficiency == 1


def test_another_generation_begins_without_guesses() -> None:
    model = drafter(2)
    model.begin(PROMPT, SamplingParams())
    says: Logits = np.eye(VOCAB, dtype=np.float32)[[3, 4, 5]]
    model.commit([*PROMPT, 3], Draft(extra=(PLACEHOLDER,) * 2), Verdict(0, (3,), (0,)), Step(says))
    assert model.propose([*PROMPT, 3], 2).tokens == (4, 5)
    assert model.propose([*PROMPT, 3, 4], 2).tokens == (5,), (
        "a token came for certain, and takes the first guess's place"
    )
    model.begin([*PROMPT, 3], SamplingParams())
    assert model.propose([*PROMPT, 3], 2).tokens == ()


def test_a_constraint_chooses_among_the_guesses() -> None:
    model = drafter(1)
    model.begin(PROMPT, SamplingParams())
    says: Logits = np.array([np.zeros(VOCAB), np.arange(VOCAB)], np.float32)
    model.commit([*PROMPT, 0], Draft(extra=(PLACEHOLDER,)), Verdict(0, (0,), (0,)), Step(says))
    assert model.propose([*PROMPT, 0], 1, lambda drafted: np.arange(VOCAB) < 9).tokens == (8,)


def test_extra_rows_of_another_drafter_are_not_taken_for_guesses() -> None:
    model = drafter(2)
    model.begin(PROMPT, SamplingParams())
    says: Logits = np.eye(VOCAB, dtype=np.float32)[[3, 4]]
    model.commit([*PROMPT, 3], Draft(extra=(7,)), Verdict(0, (3,), (0,)), Step(says))
    assert model.propose([*PROMPT, 3], 2).tokens == ()


@pytest.mark.parametrize(("tokens", "count"), [((), 3), ((PLACEHOLDER,), 0)])
def test_no_placeholder_is_an_error(tokens: Sequence[int], count: int) -> None:
    with pytest.raises(SettingError, match="adaptive tokens"):
        AdaptiveTokens(tokens, VOCAB, count=count)
