"""The end of a prompt that a backend defers: it runs in front of the next forward, or is forgotten."""

from __future__ import annotations

import pytest

from edgespec.backends.fake import FakeModel
from edgespec.protocols import Model
from tests import contract
from tests.contract import Make, close, fresh_logits, takes_trees

make = contract.make
TEXT = [(13 * i + i * i) % 50 for i in range(7)]


def deferred(make: Make, text: list[int]) -> tuple[Model, int]:
    """A model that has deferred the end of a text, and how many rows of it."""
    model = make()
    if isinstance(model, FakeModel):
        model.leaves = 8
    model.prefill(text, reserve=3)
    rows = len(text) - model.cache.length
    if not rows:
        pytest.skip("its forwards are too narrow for the end of a prompt")
    assert model.free_width == model.capabilities.max_width - rows
    return model, rows


@pytest.mark.cpu
def test_the_end_of_a_prompt_that_is_deferred_runs_in_front_of_the_next_forward(make: Make) -> None:
    (model, rows), other = deferred(make, TEXT), make()
    step = model.forward([6, 7, 8])
    assert (step.prompt_rows, len(step.logits)) == (rows, 3) and step.width >= rows + 3
    logits = step.logits.copy()
    model.cache.keep([0, 1])
    assert list(model.cache.tokens) == [*TEXT, 6, 7] and model.free_width == model.capabilities.max_width
    for row, more in zip(logits, ([6], [6, 7], [6, 7, 8]), strict=True):
        assert close(model, row, fresh_logits(other, [*TEXT, *more]))
    assert model.forward([9]).prompt_rows == 0


def test_a_tree_may_stand_behind_a_deferred_end(make: Make) -> None:
    (model, _), other = deferred(make, TEXT), make()
    if not takes_trees(model):
        pytest.skip("chains only")
    model.forward([6, 7, 8, 9], tree=(0, 0, 2))
    model.cache.keep([0, 2, 3])
    assert list(model.cache.tokens) == [*TEXT, 6, 8, 9]
    assert close(model, model.forward([5]).logits[0], fresh_logits(other, [*TEXT, 6, 8, 9, 5]))


@pytest.mark.parametrize("then", ["reset", "crop", "prefill", "start"])
def test_whoever_goes_back_forgets_what_was_deferred(make: Make, then: str) -> None:
    (model, rows), other = deferred(make, TEXT), make()
    text = TEXT[: len(TEXT) - rows]
    if then == "reset":
        model.cache.reset()
        text = []
    elif then == "crop":
        model.cache.crop(len(text))
    elif then == "prefill":
        text = [*TEXT, 3]
        model.prefill(text)
    else:  # one that nobody waits for does nothing
        model.start([1, 2])
        text = TEXT
    step = model.forward([4])
    assert step.prompt_rows == (rows if then == "start" else 0)
    assert list(model.cache.tokens) == [*text, 4]
    assert close(model, step.logits[0].copy(), fresh_logits(other, [*text, 4]))


def test_without_a_reserve_nothing_is_deferred(make: Make) -> None:
    model = make()
    model.prefill(TEXT)
    assert list(model.cache.tokens) == TEXT and model.free_width == model.capabilities.max_width


def test_the_progress_of_a_prefill_ends_with_what_was_deferred(make: Make) -> None:
    model, seen = make(), []
    if isinstance(model, FakeModel):
        model.leaves = 8
    model.prefill(TEXT, reserve=3, progress=lambda done, total: seen.append((done, total)))
    model.forward([6, 7])
    model.forward([8])
    assert seen == [(len(TEXT), len(TEXT))]
