"""Draws: what ``draw`` and ``pick`` return is distributed as the logits say, and noise is as good as independent."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from edgespec import sampling
from edgespec.errors import SettingError
from edgespec.sampling import (
    ACCEPT,
    CORRECT,
    DRAFT,
    adjust,
    choose,
    draw,
    gumbel,
    pick,
    probabilities,
    truncate,
    uniform,
)
from edgespec.sampling_params import SamplingParams
from edgespec.types import Distribution

VOCAB = 8
DRAWS = 3000
TARGET = np.log(np.array([0.30, 0.22, 0.16, 0.12, 0.09, 0.06, 0.04, 0.01])).astype(np.float32)
PARAMS = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.25},
]


def p_value(counts: np.ndarray, expected: np.ndarray) -> float:
    """Chi-square of counts against probabilities; anything where nothing may be is certain proof."""
    if counts[expected == 0].any():
        return 0.0
    inside = expected > 0
    return float(chisquare(counts[inside], expected[inside] * counts.sum()).pvalue)


def count(tokens: Sequence[int]) -> np.ndarray:
    return np.bincount(tokens, minlength=VOCAB)


@pytest.mark.parametrize("rules", PARAMS)
def test_a_keyed_draw_has_the_softmax_distribution_over_seeds_and_over_positions(rules: dict[str, Any]) -> None:
    expected = probabilities(TARGET, SamplingParams(**rules, seed=0))
    over_seeds = [draw(TARGET, SamplingParams(**rules, seed=seed), 17) for seed in range(DRAWS)]
    over_positions = [draw(TARGET, SamplingParams(**rules, seed=5), position) for position in range(DRAWS)]
    assert p_value(count(over_seeds), expected) > 1e-4
    assert p_value(count(over_positions), expected) > 1e-4


def test_draws_at_neighbouring_positions_and_seeds_are_independent() -> None:
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in range(DRAWS)]
    here = np.array([draw(TARGET, p, 100) for p in params])
    for there in (
        np.array([draw(TARGET, p, 101) for p in params]),
        np.array(
            [draw(TARGET, SamplingParams(temperature=1.0, seed=p.seed + 1), 100) for p in params if p.seed is not None]
        ),
    ):
        joint = np.zeros((VOCAB, VOCAB))
        np.add.at(joint, (here, there), 1)
        one = probabilities(TARGET, params[0])
        assert p_value(joint.ravel(), np.outer(one, one).ravel()) > 1e-4


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**40),
    scale=st.sampled_from([0.1, 1.0, 10.0, 60.0]),
    key=st.integers(0, 1000),
)
def test_skipping_hopeless_tokens_never_changes_a_draw(seed: int, position: int, scale: float, key: int) -> None:
    logits = (np.random.default_rng(key).standard_normal(300) * scale).astype(np.float32)
    params = SamplingParams(temperature=0.7, seed=seed)
    everything = np.asarray(logits, np.float64) / 0.7 + gumbel(seed, position, np.arange(300))
    assert draw(logits, params, position) == int(everything.argmax())


def test_noise_of_a_token_does_not_depend_on_its_company() -> None:
    ids = np.arange(50000)
    whole = gumbel(3, 9, ids)
    assert np.isfinite(whole).all() and whole.max() <= sampling._GUMBEL_MAX
    assert np.array_equal(gumbel(3, 9, ids[[7, 4000, 49999]]), whole[[7, 4000, 49999]])
    assert abs(whole.mean() - 0.5772) < 0.02 and abs(whole.var() - np.pi**2 / 6) < 0.05


def test_uniform_numbers_are_uniform_and_share_nothing() -> None:
    """Along each word of the key, and between keys that differ in one word."""
    streams = {
        "by seed": [uniform(seed, ACCEPT, DRAWS, 0) for seed in range(DRAWS)],
        "by position": [uniform(5, ACCEPT, position, 0) for position in range(DRAWS)],
        "next sibling": [uniform(5, ACCEPT, position, 1) for position in range(DRAWS)],
        "next seed": [uniform(6, ACCEPT, position, 0) for position in range(DRAWS)],
        "correction": [uniform(5, CORRECT, position) for position in range(DRAWS)],
        "draft": [uniform(5, DRAFT, position, position) for position in range(DRAWS)],
        "draft, next round": [uniform(5, DRAFT, position - 1, position) for position in range(1, DRAWS + 1)],
    }
    assert len({number for stream in streams.values() for number in stream}) == len(streams) * DRAWS
    for stream in streams.values():
        assert kstest(stream, "uniform").pvalue > 1e-4
    for left, right in itertools.combinations([*streams.values(), [*streams["by position"][1:], 0.5]], 2):
        joint = np.histogram2d(left, right, bins=6, range=[[0, 1], [0, 1]])[0]
        assert p_value(joint.ravel(), np.full(36, 1 / 36)) > 1e-4


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
def test_one_number_is_mixed_as_an_array_of_them_is(numbers: list[int]) -> None:
    assert [sampling._mix_one(n) for n in numbers] == sampling._mix(np.array(numbers, np.uint64)).tolist()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8).filter(lambda numbers: sum(numbers) > 1e-3))
def test_a_pick_cuts_the_unit_interval_into_the_probabilities(numbers: list[float]) -> None:
    probs = np.array(numbers) / sum(numbers)
    source = Distribution(np.arange(len(probs)) * 3 + 1, probs)
    middles = (np.arange(400) + 0.5) / 400
    picked = np.bincount([(pick(source, number) - 1) // 3 for number in middles], minlength=len(probs))
    assert (np.abs(picked - 400 * probs) <= 1).all()
    for number in (2.0**-53, 1 - 2.0**-53):
        assert source.of(pick(source, number)) > 0


@settings(deadline=None, max_examples=150)
@given(
    key=st.integers(0, 10**6), temperature=st.floats(0.05, 5), top_k=st.integers(0, 320),
    top_p=st.floats(0.01, 1.0), min_p=st.floats(0, 1),
)  # fmt: skip
def test_truncation_equals_its_definition(key: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = (np.random.default_rng(key).standard_normal(300) * 4).astype(np.float32)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=0)
    order = np.argsort(-logits, kind="stable")
    if top_k:
        order = order[:top_k]
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / temperature)
    if top_p < 1:
        weights /= weights.sum()
        order = order[: int(np.searchsorted(np.cumsum(weights), top_p)) + 1]
        weights = weights[: len(order)]
    order = order[weights >= weights[0] * min_p]
    ids, scaled = truncate(logits, params)
    difference = set(ids.tolist()) ^ set(order.tolist())
    # A mass that lands on the threshold to the last bit may fall either way, and so may tokens that weigh nothing.
    share = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    assert len(difference) <= 1 or share[list(difference)].sum() < 1e-12 * share.sum()
    assert np.allclose(scaled, (logits[ids].astype(np.float64) - logits.max()) / temperature)
    assert abs(probabilities(logits, params).sum() - 1) < 1e-9


def test_penalty_and_bias() -> None:
    logits = np.array([2.0, -1.0, 0.5, 3.0], np.float32)
    row = adjust(logits, [0, 1, 0], SamplingParams(repetition_penalty=2.0, logit_bias={2: 10.0}))
    assert row.tolist() == [1.0, -2.0, 10.5, 3.0]
    assert logits.tolist() == [2.0, -1.0, 0.5, 3.0]
    assert adjust(logits, [0], SamplingParams()) is logits


def test_the_smallest_temperature_is_nearly_greedy() -> None:
    logits = np.array([3.0, 1.0, 7.0, 6.9], np.float32)
    assert {draw(logits, SamplingParams(temperature=1e-309, seed=seed), 0) for seed in range(20)} == {2}


@pytest.mark.parametrize("bias", [1e30, -1e30])
@pytest.mark.parametrize("penalty", [1e3, 1e-3])
def test_the_largest_bias_and_penalty_leave_a_distribution(bias: float, penalty: float) -> None:
    logits = np.array([40.0, -40.0, 3.0, -np.inf], np.float32)
    for temperature in (1.0, 1e-309):
        params = SamplingParams(temperature, repetition_penalty=penalty, logit_bias={0: bias, 1: bias}, seed=3)
        with np.errstate(all="raise", under="ignore"):
            probs = probabilities(adjust(logits, [0, 1, 2, 3], params), params)
            token = choose(logits, [0, 1, 2, 3], params)
        assert probs.sum() == pytest.approx(1.0) and probs[3] == 0.0 < probs[token]
        assert (token == 2) == (bias < 0)


def test_a_bias_of_minus_infinity_forbids_a_token() -> None:
    params = [SamplingParams(temperature=1.0, top_p=0.95, logit_bias={0: -np.inf}, seed=seed) for seed in range(200)]
    assert 0 not in {choose(TARGET, (), p, 5) for p in params}


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_k": -1},
        {"top_p": 0.0}, {"top_p": 1.5}, {"top_p": float("nan")}, {"min_p": -1}, {"min_p": 1.1},
        {"repetition_penalty": 0.0}, {"repetition_penalty": -1}, {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: float("nan")}},
        {"logit_bias": {1: float("inf")}}, {"logit_bias": {1: 1e39}}, {"logit_bias": {1: -1e39}},
        {"repetition_penalty": 1e-40}, {"repetition_penalty": 1e40}, {"verification": "typical"},
        {"temperature": "0.8"}, {"temperature": 10**400}, {"temperature": None}, {"top_p": True},
        {"logit_bias": {"5": 1.0}},
        {"logit_bias": {1.5: 1.0}}, {"logit_bias": {5: "1"}}, {"logit_bias": [5]}, {"top_k": True}, {"seed": True},
        {"top_k": 2.5}, {"seed": 1.5}, {"seed": -1}, {"seed": 2**64},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(bad))}; got .*; allowed: "):
        SamplingParams(**bad)  # type: ignore[arg-type]


def test_numbers_of_other_types_are_taken_as_floats() -> None:
    params = SamplingParams(temperature=Fraction(4, 5), min_p=Fraction(1, 10), top_k=np.int64(3), seed=1)  # type: ignore[arg-type]
    assert params == SamplingParams(temperature=0.8, min_p=0.1, top_k=3, seed=1)
    assert type(params.min_p) is float and type(params.top_k) is int
