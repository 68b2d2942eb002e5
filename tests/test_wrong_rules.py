"""The tests of the distribution fail when the rule is broken.

Every way to get it wrong that we could think of takes the place of one name in the
real code in turn; everything else stays real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec.decode.verify import residual, without
from edgespec.drafters.token_choice import TokenChoice
from edgespec.sampling import ACCEPT, CORRECT, distribution, draw, pick, uniform
from edgespec.sampling_params import SamplingParams
from edgespec.types import Distribution, Logits
from tests.distributions import ALPHA, PENALTY, PLAIN, REJECTION, SPARSE, check


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


def drawn_by(number: Callable[[int, int], float]) -> Callable[..., int]:
    """A draft drawn by a number of (seed, position)."""

    def wrong(row: Logits, params: SamplingParams, position: int, ids: NDArray[np.int32]) -> int:
        assert params.seed is not None
        return pick(distribution(row, params, ids), number(params.seed, position))

    return wrong


def with_the_texts_seed(self: TokenChoice, committed: int) -> SamplingParams:
    return self._params


def with_one_seed(self: TokenChoice, committed: int) -> SamplingParams:
    assert self._params.seed is not None
    return replace(self._params, seed=7 * self._params.seed + 3)


VERIFY, DRAFT = "edgespec.decode.verify", "edgespec.drafters.token_choice"
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
        f"{DRAFT}.draw", drawn_by(lambda seed, position: uniform(seed, ACCEPT, position, 0)), "reversed", PLAIN,
    ),
    "one number for draft and correction": (
        f"{DRAFT}.draw", drawn_by(lambda seed, position: uniform(seed, CORRECT, position)), "reversed", PLAIN,
    ),
    "one number for a position in all rounds": (f"{DRAFT}.TokenChoice._drawing", with_one_seed, "peeking", PLAIN),
    "a greedy draft that calls itself sampled": (
        f"{DRAFT}.draw", lambda row, params, position, ids: int(ids[row.argmax()]), "close", PLAIN,
    ),
    "the draft says another distribution than it drew from": (
        f"{DRAFT}.draw", lambda row, params, position, ids: draw(2 * row, params, position, ids), "close", PLAIN,
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
    if "one number for draft" in name:  # of the text's seed, not of one of the draft's own
        monkeypatch.setattr(TokenChoice, "_drawing", with_the_texts_seed)
    assert check(world, settings | REJECTION) < ALPHA
