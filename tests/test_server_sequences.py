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
def pipeline(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path, model=sensitive)


def text(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2, 400) for _ in range(length)]


def held(sequences: Sequences, pipeline: Pipeline, prompt: Sequence[int], kind: Kind = "completion") -> int:
    """How many tokens of a prompt are not read again."""
    sequences.bring(pipeline, prompt, kind)
    return pipeline.generate(list(prompt), max_new_tokens=2, ignore_eos=True).stats.reused_tokens


def test_a_prompt_comes_back_after_others_and_the_text_is_the_same(pipeline: Pipeline) -> None:
    sequences = Sequences(1 << 20)
    prompts = [text(seed, 100 + seed) for seed in range(4)]
    alone = [pipeline.generate(prompt, max_new_tokens=8, ignore_eos=True).token_ids for prompt in prompts]
    pipeline.target.cache.reset()
    for repeat in range(3):
        for prompt, expected in zip(prompts, alone, strict=True):
            came = sequences.bring(pipeline, prompt, "chat")
            result = pipeline.generate(prompt, max_new_tokens=8, ignore_eos=True)
            assert result.token_ids == expected
            assert came == (0 if repeat == 0 else len(prompt) - 1) == result.stats.reused_tokens


def test_any_history_gives_the_text_of_a_fresh_model(pipeline: Pipeline, tmp_path: Path) -> None:
    other, rng = fake_pipeline(tmp_path / "other", model=sensitive), random.Random(2)
    sequences, texts, total = Sequences(60 * BLOCK_BYTES), [text(9, 80)], 0
    for _ in range(120):
        begin = rng.choice(texts)
        prompt = begin[: rng.randrange(1, len(begin) + 1)] + text(rng.randrange(10**6), rng.randrange(1, 60))
        if len(prompt) > 400:
            continue
        texts = [*texts[-20:], prompt]
        total += sequences.bring(pipeline, prompt, rng.choice(["chat", "completion"]))
        found = pipeline.generate(prompt, max_new_tokens=rng.randrange(1, 40), ignore_eos=True)
        other.target.cache.reset()
        budget = len(found.token_ids)
        assert other.generate(prompt, max_new_tokens=budget, ignore_eos=True).token_ids == found.token_ids
        assert sequences.nbytes <= 60 * BLOCK_BYTES
    assert total > 1000
    sequences.forget(pipeline)
    assert sequences.nbytes == 0


def test_prompts_that_begin_alike_share_their_blocks(pipeline: Pipeline) -> None:
    sequences, system = Sequences(1 << 20), text(0, 10 * 32)
    for seed in range(1, 6):
        held(sequences, pipeline, [*system, *text(seed, 20)])
    sequences.bring(pipeline, text(99, 40), "chat")
    assert sequences.nbytes <= (10 + 5) * BLOCK_BYTES


def test_a_shared_beginning_in_the_middle_of_a_block_is_used(pipeline: Pipeline) -> None:
    sequences, begin = Sequences(1 << 20), text(0, 50)
    held(sequences, pipeline, [*begin, *text(1, 30)])
    held(sequences, pipeline, text(2, 60))
    assert held(sequences, pipeline, [*begin, *text(3, 30)]) == 50


def test_a_completion_takes_no_place_of_a_chat(pipeline: Pipeline) -> None:
    sequences, chat = Sequences(8 * BLOCK_BYTES), text(0, 7 * 32)
    held(sequences, pipeline, chat, "chat")
    sequences.bring(pipeline, text(50, 40), "chat")
    for seed in range(1, 9):
        held(sequences, pipeline, text(seed, 4 * 32))
    assert held(sequences, pipeline, chat, "chat") == len(chat) - 1
    for seed in range(1, 9):
        held(sequences, pipeline, text(seed, 4 * 32), "chat")
    assert held(sequences, pipeline, chat, "chat") == 0


def test_what_was_used_last_stays_longest(pipeline: Pipeline) -> None:
    sequences, prompts = Sequences(12 * BLOCK_BYTES), [text(seed, 4 * 32) for seed in range(4)]
    for index in (0, 1, 0, 2, 0, 3):
        held(sequences, pipeline, prompts[index])
    assert held(sequences, pipeline, prompts[0]) == len(prompts[0]) - 1
    assert held(sequences, pipeline, prompts[1]) == 0


def test_without_a_budget_nothing_is_copied(pipeline: Pipeline) -> None:
    sequences = Sequences(0)
    assert held(sequences, pipeline, text(0, 100)) == 0
    assert held(sequences, pipeline, text(1, 100)) == held(sequences, pipeline, text(0, 100)) == 0
    assert sequences.nbytes == 0
    assert cast(FakeModel, pipeline.target).cache.length


def test_a_text_of_more_blocks_than_python_recurses_is_forgotten(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path, capacity=4096)
    cast(Any, pipeline.target.cache).block_rows = 2
    sequences = Sequences(1 << 20)
    sequences.bring(pipeline, [2], "chat")
    pipeline.generate(text(1, 4000), max_new_tokens=1, ignore_eos=True)
    sequences.bring(pipeline, [3], "chat")
    assert sequences.nbytes
    sequences.forget(pipeline)
    assert sequences.nbytes == 0
