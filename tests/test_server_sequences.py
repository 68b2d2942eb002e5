"""Saved prefixes: prompts that begin like an earlier one are not read again, within a budget."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from edgespec.backends.fake import FakeModel, random_table
from edgespec.pipeline import Pipeline
from edgespec.server.schema import Kind
from edgespec.server.sequences import Sequences
from tests.fake_server import fake_pipeline

BLOCK_BYTES = 8 * 32


def sensitive(table: Any, vocab: int, **options: Any) -> FakeModel:
    """A model whose next token depends on the whole text."""
    return FakeModel(random_table(vocab, seed=1, order=1000), vocab, **options)


@pytest.fixture
def served(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path, model=sensitive)


def text(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2, 400) for _ in range(length)]


def held(sequences: Sequences, served: Pipeline, prompt: Sequence[int], kind: Kind = "completion") -> int:
    """How many tokens of a prompt are not read again."""
    sequences.bring(served, prompt, kind)
    return served.generate(list(prompt), max_new_tokens=2, ignore_eos=True).stats.reused_tokens


def test_a_prompt_comes_back_after_others_and_the_text_is_the_same(served: Pipeline) -> None:
    sequences = Sequences(1 << 20)
    prompts = [text(seed, 100 + seed) for seed in range(4)]
    alone = [served.generate(prompt, max_new_tokens=8, ignore_eos=True).token_ids for prompt in prompts]
    served.target.cache.reset()
    for repeat in range(3):
        for prompt, expected in zip(prompts, alone, strict=True):
            came = sequences.bring(served, prompt, "chat")
            result = served.generate(prompt, max_new_tokens=8, ignore_eos=True)
            assert result.token_ids == expected
            assert came == (0 if repeat == 0 else len(prompt) - 1) == result.stats.reused_tokens


def test_any_history_gives_the_text_of_a_fresh_model(served: Pipeline, tmp_path: Path) -> None:
    other, rng = fake_pipeline(tmp_path / "other", model=sensitive), random.Random(2)
    sequences, texts, total = Sequences(60 * BLOCK_BYTES), [text(9, 80)], 0
    for _ in range(120):
        begin = rng.choice(texts)
        prompt = begin[: rng.randrange(1, len(begin) + 1)] + text(rng.randrange(10**6), rng.randrange(1, 60))
        if len(prompt) > 400:
            continue
        texts = [*texts[-20:], prompt]
        total += sequences.bring(served, prompt, rng.choice(["chat", "completion"]))
        found = served.generate(prompt, max_new_tokens=rng.randrange(1, 40), ignore_eos=True)
        other.target.cache.reset()
        budget = len(found.token_ids)
        assert other.generate(prompt, max_new_tokens=budget, ignore_eos=True).token_ids == found.token_ids
        assert sequences.nbytes <= 60 * BLOCK_BYTES
    assert total > 1000
    sequences.forget(served)
    assert sequences.nbytes == 0


def test_prompts_that_begin_alike_share_their_blocks(served: Pipeline) -> None:
    sequences, system = Sequences(1 << 20), text(0, 10 * 32)
    for seed in range(1, 6):
        held(sequences, served, [*system, *text(seed, 20)])
    sequences.bring(served, text(99, 40), "chat")
    assert sequences.nbytes <= (10 + 5) * BLOCK_BYTES


def test_a_shared_beginning_in_the_middle_of_a_block_is_used(served: Pipeline) -> None:
    sequences, begin = Sequences(1 << 20), text(0, 50)
    held(sequences, served, [*begin, *text(1, 30)])
    held(sequences, served, text(2, 60))
    assert held(sequences, served, [*begin, *text(3, 30)]) == 50


def test_a_completion_takes_no_place_of_a_chat(served: Pipeline) -> None:
    sequences, chat = Sequences(8 * BLOCK_BYTES), text(0, 7 * 32)
    held(sequences, served, chat, "chat")
    sequences.bring(served, text(50, 40), "chat")
    for seed in range(1, 9):
        held(sequences, served, text(seed, 4 * 32))
    assert held(sequences, served, chat, "chat") == len(chat) - 1
    for seed in range(1, 9):
        held(sequences, served, text(seed, 4 * 32), "chat")
    assert held(sequences, served, chat, "chat") == 0


def test_what_was_used_last_stays_longest(served: Pipeline) -> None:
    sequences, prompts = Sequences(12 * BLOCK_BYTES), [text(seed, 4 * 32) for seed in range(4)]
    for index in (0, 1, 0, 2, 0, 3):
        held(sequences, served, prompts[index])
    assert held(sequences, served, prompts[0]) == len(prompts[0]) - 1
    assert held(sequences, served, prompts[1]) == 0


def test_without_a_budget_nothing_is_copied(served: Pipeline) -> None:
    sequences = Sequences(0)
    assert held(sequences, served, text(0, 100)) == 0
    assert held(sequences, served, text(1, 100)) == held(sequences, served, text(0, 100)) == 0
    assert sequences.nbytes == 0
    assert cast(FakeModel, served.target).cache.length


def test_a_text_of_more_blocks_than_python_recurses_is_forgotten(tmp_path: Path) -> None:
    served = fake_pipeline(tmp_path, capacity=4096)
    cast(Any, served.target.cache).block_rows = 2
    sequences = Sequences(1 << 20)
    sequences.bring(served, [2], "chat")
    served.generate(text(1, 4000), max_new_tokens=1, ignore_eos=True)
    sequences.bring(served, [3], "chat")
    assert sequences.nbytes
    sequences.forget(served)
    assert sequences.nbytes == 0
