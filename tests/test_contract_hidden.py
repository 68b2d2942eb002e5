"""Hidden states on every backend: of the rows that were given and no others, whatever ran before."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec.backends.fake import FakeModel
from edgespec.protocols import Model
from edgespec.types import Hidden, Verdict
from tests import contract
from tests.contract import LAYERS, Make

make = contract.make
TEXT = [(7 * i + i * i) % 50 for i in range(90)]
States = dict[int, NDArray[np.float32]]


def copied(hidden: Hidden) -> States:
    """They are views, valid until the next forward."""
    return {layer: states.copy() for layer, states in hidden.items()}


def fresh_states(model: Model, text: list[int]) -> States:
    """Of every row, from one forward at a time."""
    model.cache.reset()
    steps = [copied(model.forward([token]).hidden) for token in text]
    return {layer: np.concatenate([step[layer] for step in steps]) for layer in LAYERS}


def untouched(make: Make, model: Model, request: pytest.FixtureRequest) -> Model:
    """Another one where it is quick to load, once an engine: what a model may hold beside its cache, it does not."""
    another = request.node.callspec.params["make"] in ("fake", "paged-exact", "onnx-exact", "stateful")
    return make(LAYERS) if another else model


def same(model: Model, left: Hidden, right: Hidden) -> bool:
    """In exact numerics to the last digit."""
    assert set(left) == set(right) == set(LAYERS)
    assert all(left[layer].shape == right[layer].shape for layer in LAYERS)
    if model.capabilities.numerics == "exact":
        return all(np.array_equal(left[layer], right[layer]) for layer in LAYERS)
    return all(np.corrcoef(left[layer].ravel(), right[layer].ravel())[0, 1] > 0.99 for layer in LAYERS)


def part(states: States, begin: int, end: int) -> States:
    return {layer: rows[begin:end] for layer, rows in states.items()}


@pytest.mark.cpu
def test_states_of_any_history_are_those_of_single_forwards(make: Make, request: pytest.FixtureRequest) -> None:
    """Whatever the width, the padding, and what was cropped and rejected before."""
    model = make(LAYERS)
    assert model.capabilities.hidden == LAYERS
    expected, rng, at = fresh_states(untouched(make, model, request), TEXT), random.Random(1), 0
    model.cache.reset()
    while at < len(TEXT):
        if rng.random() < 0.3:
            at = rng.randrange(at + 1)
            model.cache.crop(at)
        n = min(rng.choice([1, 1, 2, 3, 5, 9, 17]), len(TEXT) - at)
        step = model.forward([*TEXT[at : at + n], 41, 42], num_logits=rng.choice([0, 1, n + 2]))
        assert all(len(states) == n + 2 for states in step.hidden.values())
        assert same(model, part(copied(step.hidden), 0, n), part(expected, at, at + n)), (at, n)
        model.cache.keep(range(n))
        at += n


def test_states_of_a_prompt_are_told_and_those_of_a_deferred_end_come_with_the_draft(
    make: Make, request: pytest.FixtureRequest
) -> None:
    model = make(LAYERS)
    if isinstance(model, FakeModel):
        model.leaves = 20
    text = TEXT[:71]
    told: list[tuple[int, list[int], States]] = []

    def observe(start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        told.append((start, list(tokens), copied(hidden)))

    model.prefill(text, reserve=3, observe=observe)
    step = model.forward([1, 2, 3])
    start, tokens, hidden = step.kept([*text, 1, 2, 9], Verdict(1, (2, 9), (0, 1)))
    told.append((start, list(tokens), copied(hidden)))
    assert [token for _, tokens, _ in told for token in tokens] == [*text, 1, 2]
    assert [start for start, *_ in told] == list(np.cumsum([0, *(len(tokens) for _, tokens, _ in told[:-1])]))
    states = {layer: np.concatenate([hidden[layer] for *_, hidden in told]) for layer in LAYERS}
    assert same(model, states, fresh_states(untouched(make, model, request), [*text, 1, 2]))


def test_a_prefix_that_is_held_is_not_told_again(make: Make) -> None:
    model = make(LAYERS)
    begins: list[int] = []
    for text in (TEXT[:40], TEXT[:60]):
        model.prefill(text, observe=lambda start, tokens, hidden: begins.append(start))
    assert begins[0] == 0 and 40 in begins and begins.count(0) == 1


@pytest.mark.cpu
def test_logits_are_the_same_without_the_states(make: Make) -> None:
    """To the last digit: nothing else is computed, and nothing in another order."""
    plain, full = make(), make(LAYERS)
    assert plain.capabilities.hidden == () and full.capabilities.hidden == LAYERS
    for model in (plain, full):
        model.prefill(TEXT[:50])
    for tokens in ([1], [2, 3], [4, 5, 6, 7, 8], [9]):
        left, right = plain.forward(tokens), full.forward(tokens)
        assert not left.hidden and np.array_equal(left.logits, right.logits)
