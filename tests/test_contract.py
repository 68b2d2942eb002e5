"""The contract every backend keeps: whatever was appended, cropped and kept, the next forward is a fresh forward."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from edgespec.errors import ContextFull
from tests import contract
from tests.conftest import load_ir
from tests.contract import CAPACITY, Make, close, fresh_logits, skip_without_masks, takes_trees

make = contract.make


@pytest.mark.cpu
def test_any_history_then_one_forward_equals_a_fresh_one(make: Make) -> None:
    model, other = make(), make()
    rng = random.Random(0)
    for _ in range(12):
        model.cache.reset()
        text: list[int] = []
        for _ in range(rng.randrange(2, 8)):
            action = rng.choice(["append", "append", "crop", "tree" if takes_trees(model) else "append"])
            if action == "crop" or len(text) > 100:
                text = text[: rng.randrange(len(text) + 1)]
                model.cache.crop(len(text))
                model.cache.crop(len(text))  # idempotent
                continue
            tokens = [rng.randrange(50) for _ in range(rng.randrange(1, 9))]
            if action == "append":
                model.forward(tokens)
                kept = rng.randrange(1, len(tokens) + 1)
                model.cache.keep(range(kept))
                text += tokens[:kept]
            else:
                tree = tuple(rng.randrange(row) for row in range(1, len(tokens)))
                model.forward(tokens, tree)
                path = random_path(tree, rng)
                model.cache.keep(path)
                text += [tokens[row] for row in path]
            assert list(model.cache.tokens) == text
        probe = rng.randrange(50)
        assert close(model, model.forward([probe]).logits[0], fresh_logits(other, [*text, probe]))


def random_path(tree: tuple[int, ...], rng: random.Random) -> list[int]:
    path = [0]
    while children := [row for row, parent in enumerate(tree, 1) if parent == path[-1]]:
        if rng.random() < 0.2:
            break
        path.append(rng.choice(children))
    return path


def test_a_tree_row_sees_its_own_branch_only(make: Make) -> None:
    model, other = make(), make()
    skip_without_masks(model)
    if not takes_trees(model):
        pytest.skip("8-bit keys by channel: rows cannot move, so trees are not declared")
    text = [5, 6, 7]
    model.prefill(text)
    # 1 -> 2 -> 3 and 1 -> 4 -> 5
    step = model.forward([1, 2, 3, 4, 5], tree=(0, 1, 0, 3))
    rows = step.logits.copy()
    for row, branch in {0: [1], 1: [1, 2], 2: [1, 2, 3], 3: [1, 4], 4: [1, 4, 5]}.items():
        assert np.allclose(rows[row], fresh_logits(other, text + branch), atol=0.05), row
        assert int(rows[row].argmax()) == int(fresh_logits(other, text + branch).argmax())


@pytest.mark.cpu
def test_logits_do_not_depend_on_the_width_or_on_the_chunks_of_the_prefill(make: Make) -> None:
    model = make()
    text = [(7 * i + i * i) % 50 for i in range(150)]
    alone = fresh_logits(model, text)
    widest = model.capabilities.max_width
    for width in sorted({min(width, widest) for width in (2, 3, 5, 8, 16, 31, widest)}):
        model.cache.reset()
        model.prefill(text[:-width])
        together = model.forward(text[-width:]).logits[-1]
        assert close(model, alone, together), width
    for first in (1, 2, 63, 64, 65, 100):
        model.cache.reset()
        model.prefill(text[:first])
        assert model.prefill(text[:-1]) == first
        assert close(model, alone, model.forward(text[-1:]).logits[0]), first


@pytest.mark.cpu
def test_rejected_rows_leave_no_trace(make: Make) -> None:
    model, other = make(), make()
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    model.prefill(text[:2])
    for index in range(2, len(text)):
        model.forward([text[index], 41, 42, 43])
        model.cache.keep([0])
    assert close(model, model.forward([8]).logits[0], fresh_logits(other, [*text, 8]))


def test_prefill_reuses_the_longest_prefix(make: Make) -> None:
    model, other = make(), make()
    assert model.prefill([1, 2, 3, 4, 5]) == 0
    assert model.prefill([1, 2, 3, 9, 9, 9]) == 3
    assert model.prefill([1, 2]) == 2
    assert list(model.cache.tokens) == [1, 2]
    assert model.prefill([1, 2, 7, 8]) == 2
    assert close(model, model.forward([8]).logits[0], fresh_logits(other, [1, 2, 7, 8, 8]))


def test_the_context_fills_to_its_last_row_and_not_further(make: Make) -> None:
    model, other = make(), make()
    text = [(i * 13) % 50 for i in range(CAPACITY)]
    with pytest.raises(ContextFull, match="701 tokens") as error:
        model.prefill([*text, 1])
    assert (error.value.tokens, error.value.capacity) == (CAPACITY + 1, CAPACITY)
    model.prefill(text[:-1])
    assert close(model, model.forward(text[-1:]).logits[0], fresh_logits(other, text))
    assert model.cache.length == CAPACITY


@pytest.mark.parametrize("reused", [CAPACITY - 3, CAPACITY - 60, CAPACITY - 195, CAPACITY - 250])
def test_pads_fit_behind_a_prompt_that_fills_the_context(make: Make, reused: int) -> None:
    """Whatever is left to read: in a prefill, and in the forward that reads the end of the prompt."""
    model, other = make(), make()
    text = [(i * 13) % 50 for i in range(CAPACITY)]
    expected = fresh_logits(other, text)
    for reserve in (None, 1):
        model.cache.reset()
        model.prefill(text[:reused])
        assert model.prefill(text[:-1], reserve=reserve) == reused
        row = model.forward(text[-1:]).logits[0]
        assert model.cache.tokens == text and close(model, row, expected)


def test_num_logits_takes_the_last_rows(make: Make) -> None:
    model = make()
    everything = model.forward([1, 2, 3, 4]).logits.copy()
    for wanted in (0, 1, 2, 4):
        model.cache.reset()
        rows = model.forward([1, 2, 3, 4], num_logits=wanted).logits
        assert rows.shape == (wanted, model.vocab_size)
        assert close(model, rows, everything[4 - wanted :])


def test_crop_and_growth_do_not_copy_more_than_they_must(tiny_ir: Path) -> None:
    model = load_ir(tiny_ir, capacity=4096)
    model.prefill([1] * 10)
    per_block = model.cache.nbytes / model.cache.blocks
    model.prefill([1] * 2000)
    large = model.cache.nbytes
    assert 2000 / 32 <= large / per_block <= 1.3 * 2000 / 32
    model.cache.crop(5)
    assert model.cache.nbytes == large  # memory is kept for the next text
