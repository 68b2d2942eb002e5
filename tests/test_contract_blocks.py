"""The contract of caches whose blocks can be copied: what comes back is what was read."""

from __future__ import annotations

import random

import pytest

from edgespec.backends.kv_blocks import BlockCopies
from tests import contract
from tests.contract import Make, close, fresh_logits

make = contract.make


@pytest.mark.cpu
def test_a_text_goes_on_behind_blocks_that_came_back(make: Make) -> None:
    model, other = make(), make()
    if not isinstance(model.cache, BlockCopies):
        pytest.skip("this cache copies no blocks")
    assert model.cache.can_copy
    rng, rows = random.Random(1), model.cache.block_rows
    texts = [[rng.randrange(50) for _ in range(length)] for length in (1, rows, 3 * rows + 5)]
    saved = []
    for text in texts:
        model.prefill(text)
        saved.append([model.cache.copy_block(index) for index in range(-(-len(text) // rows))])
        model.forward([7])
    for text, blocks in zip(texts, saved, strict=True):
        for length in {len(text), max(len(text) - rows - 1, 1), max(len(text) - 3, 1)}:
            model.prefill([49, 48, 47] * 20)
            model.cache.restore(text[:length], blocks[: -(-length // rows)])
            assert list(model.cache.tokens) == text[:length]
            assert close(model, model.forward([9]).logits[0], fresh_logits(other, [*text[:length], 9]))


@pytest.mark.cpu
def test_only_the_last_blocks_need_come_back(make: Make) -> None:
    model, other = make(), make()
    if not isinstance(model.cache, BlockCopies):
        pytest.skip("this cache copies no blocks")
    rows = model.cache.block_rows
    text = [index % 47 for index in range(3 * rows + 5)]
    model.prefill(text)
    blocks = [model.cache.copy_block(index) for index in (2, 3)]
    model.prefill([*text[: 2 * rows + 3], 48, 48])
    assert model.cache.length == 2 * rows + 5
    model.cache.restore(text, blocks)
    assert close(model, model.forward([9]).logits[0], fresh_logits(other, [*text, 9]))
    model.prefill([3, *text])
    with pytest.raises(AssertionError, match="not held"):
        model.cache.restore(text, blocks)
