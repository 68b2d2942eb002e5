"""Parity through the real engine: SmolLM2 with every drafter, mode and length gives plain decoding's tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.adaptive.arbiter import Arbiter
from edgespec.adaptive.calibration import ForwardTimes
from edgespec.adaptive.forward_cost import ForwardCost
from edgespec.decode.autoregressive import autoregressive
from edgespec.decode.policy import FixedLength, Plain
from edgespec.decode.speculative import speculative
from edgespec.drafters.first_match import FirstMatch
from edgespec.drafters.ngram import NGram
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.recycling import Recycling
from edgespec.drafters.retrieval import Retrieval
from edgespec.drafters.small_model import SmallModel
from edgespec.drafters.text_pool import Pool
from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.protocols import Drafter
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from tests.books import check_identities
from tests.conftest import load_ir, random_draft

PROMPTS = (
    "<|im_start|>user\nCount from 1 to 30, with commas.<|im_end|>\n<|im_start|>assistant\n",
    'def add(a, b):\n    """Return the sum."""\n    return a + b\n\n\ndef sub(a, b):\n',
)
MODES = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=0.8, top_p=0.95, seed=1234),
    "sampled-all": SamplingParams(temperature=1.0, repetition_penalty=1.1, seed=99),
}
TOKENS = 24
Plainly = Callable[[str, str], list[int]]
"""the tokens of plain decoding, of a prompt in a mode"""


def slow(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Cases that others stand for. The default suite has every one on the fake model (test_loop), and on a tiny target
    (test_parity_tiny) those of all drafters but another model."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


class MadeOnce(dict[str, Drafter | None]):
    """Each when it is first asked for: one is a model to load, one has to be exported."""

    def __init__(self, **makers: Callable[[], Drafter | None]) -> None:
        self._makers = makers

    def __missing__(self, name: str) -> Drafter | None:
        self[name] = made = self._makers[name]()
        return made


@pytest.fixture(scope="session")
def drafters(pipeline: Pipeline, plain: Plainly, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drafter | None]:
    """None: what the pipeline has."""
    size = pipeline.target.vocab_size

    def model(xml: Path, name: str) -> SmallModel:
        return SmallModel(load_ir(xml, is_draft=True), size, name=name)

    return MadeOnce(
        none=NoDrafter,
        ngram=NGram,
        random=lambda: model(random_draft(tmp_path_factory), "random"),
        itself=lambda: model(_target_xml(pipeline), "itself"),
        shipped=lambda: None,
        recycling=lambda: Recycling(size),
        pool=lambda: Pool(4096, shortest=2),
        retrieval=lambda: Retrieval([pipeline.tokenizer.encode(text) + plain(text, "greedy") for text in PROMPTS]),
    )


def _target_xml(pipeline: Pipeline) -> Path:
    from edgespec.hub.resolve import model_path

    return model_path(pipeline.bundle, pipeline.bundle.manifest.target)


@pytest.fixture(scope="session")
def plain(pipeline: Pipeline) -> Plainly:
    @cache
    def tokens(prompt: str, mode: str) -> list[int]:
        context = pipeline.tokenizer.encode(prompt)
        start = len(context)
        pipeline.target.cache.reset()
        for _ in autoregressive(pipeline.target, context, MODES[mode], stop=(), budget=TOKENS):
            pass
        return context[start:]

    return tokens


@pytest.mark.parametrize(
    ("name", "k", "mode"),
    [
        *product(("shipped",), (8,), ("greedy", "sampled")),
        *(("ngram", 8, "greedy"), ("none", 0, "greedy")),
        *slow(product(("itself", "recycling", "pool", "retrieval"), (8,), ("greedy",))),
        *slow((("shipped", 1, "greedy"), ("ngram", 8, "sampled-all"))),
        *slow((("shipped", 8, "sampled-all"), *product(("shipped",), (1,), ("sampled", "sampled-all")))),
        *slow((("ngram", 8, "sampled"), *product(("random",), (4,), MODES))),
        *slow(product(("itself", "recycling", "pool", "retrieval"), (8,), ("sampled", "sampled-all"))),
        *slow(product(("none",), (0,), ("sampled", "sampled-all"))),
        *slow(product(("random",), (1,), MODES)),
        *slow(product(("ngram", "itself", "recycling", "pool", "retrieval"), (1,), MODES)),
        *slow(product(("ngram", "itself", "shipped", "recycling", "pool", "retrieval"), (2, 4), MODES)),
        *slow(product(("random",), (2, 8), MODES)),
        *slow((("none", 8, "greedy"), *product(("shipped",), (0,), MODES))),
        *slow(product(("ngram", "itself", "recycling", "pool", "retrieval", "random"), (0,), MODES)),
    ],
)
def test_exact_numerics_give_plain_decodings_tokens(
    pipeline: Pipeline, drafters: dict[str, Drafter | None], plain: Plainly, name: str, mode: str, k: int
) -> None:  # fmt: skip
    for prompt in PROMPTS:
        expected = plain(prompt, mode)
        result = pipeline.generate(
            pipeline.tokenizer.encode(prompt), sampling=MODES[mode], max_new_tokens=TOKENS, ignore_eos=True,
            num_draft_tokens=k, drafter=drafters[name],
        )  # fmt: skip
        assert result.token_ids == expected
        assert result.numerics == "exact"
        check_identities(result.stats.rounds)
        assert name != "recycling" or k == 0 or result.stats.proposed > 0
        assert name != "retrieval" or mode != "greedy" or k == 0 or result.stats.accepted > 0


@pytest.fixture(scope="session")
def onnx_pipeline() -> Pipeline:
    import edgespec

    return edgespec.load(backend="onnxruntime")


@pytest.mark.parametrize(
    ("name", "k", "mode"),
    [
        *(("ngram", 8, "greedy"), ("auto", None, "sampled")),
        *slow((*product(("ngram",), (8,), ("sampled", "sampled-all")), ("auto", None, "greedy"))),
        *slow((("auto", None, "sampled-all"),)),
        *slow(product(("ngram",), (1,), MODES)),
        *slow(product(("random", "shipped"), (1, 8), MODES)),
        *slow(product(("ngram", "random", "shipped", "recycling", "pool"), (2, 4), MODES)),
    ],
)
def test_so_they_do_on_onnx_runtime(
    onnx_pipeline: Pipeline, drafters: dict[str, Drafter | None], name: str, mode: str, k: int | None
) -> None:
    pipeline = onnx_pipeline
    assert pipeline.target.capabilities.backend == "onnxruntime"
    for prompt in PROMPTS:
        policy = as_if_it_paid(pipeline) if name == "auto" else None
        drafter = drafters[name] if policy is None else None
        options = {"sampling": MODES[mode], "max_new_tokens": TOKENS, "ignore_eos": True}
        ids = pipeline.tokenizer.encode(prompt)
        pipeline.target.cache.reset()
        plain = pipeline.generate(ids, policy=Plain(), **options)
        drafted = pipeline.generate(ids, num_draft_tokens=k, drafter=drafter, policy=policy, **options)
        assert drafted.token_ids == plain.token_ids and drafted.numerics == "exact"
        assert name not in ("auto", "shipped") or drafted.stats.proposed > 0
        check_identities(drafted.stats.rounds)


def as_if_it_paid(pipeline: Pipeline) -> Arbiter:
    """All that it has, chosen between round by round, on a machine where rows are cheap. Whether drafts pay on this one
    is not for a test to say."""
    target_s = ForwardCost(ForwardTimes((1, 8), 64, 512, (0.010, 0.012), (0.010, 0.012)))
    draft_s = ForwardCost(ForwardTimes((1,), 64, 512, (0.001,), (0.001,)))
    assert isinstance(pipeline.drafter, FirstMatch)
    return Arbiter([NGram(), Pool()], pipeline.drafter.last, target_s=target_s, draft_s=draft_s)


def test_the_targets_own_copy_agrees_nearly_always_greedy_and_sampled(
    pipeline: Pipeline, drafters: dict[str, Drafter | None]
) -> None:
    for mode in ("greedy", "sampled"):
        result = pipeline.generate(
            pipeline.tokenizer.encode(PROMPTS[0]), sampling=MODES[mode], max_new_tokens=40, ignore_eos=True,
            num_draft_tokens=4, drafter=drafters["itself"],
        )  # fmt: skip
        assert result.stats.acceptance_rate is not None and result.stats.acceptance_rate > 0.9


def test_rejection_repeats_and_is_plain_decoding_where_nothing_is_drawn(
    pipeline: Pipeline, drafters: dict[str, Drafter | None]
) -> None:
    """Its distribution is looked at in tests/test_distribution.py."""
    texts: dict[str, list[int]] = {}
    for name in ("none", "ngram", "itself", "shipped", "shipped"):
        result = pipeline.generate(
            pipeline.tokenizer.encode(PROMPTS[0]), max_new_tokens=TOKENS, ignore_eos=True, num_draft_tokens=3,
            sampling=replace(MODES["sampled"], verification="rejection"), drafter=drafters[name],
        )  # fmt: skip
        check_identities(result.stats.rounds)
        assert result.as_dict()["verification"] == "rejection"
        assert texts.setdefault(name, result.token_ids) == result.token_ids
        if name == "itself":
            assert result.stats.acceptance_rate is not None and result.stats.acceptance_rate > 0.95
    assert texts["none"] == texts["ngram"] != texts["shipped"]


@pytest.mark.parametrize(
    ("name", "k"),
    [
        ("none", 0),
        ("ngram", 8),
        *slow((("random", 4), ("none", 8), *product(("ngram", "random"), (0, 2)))),
        *slow((("ngram", 1), ("ngram", 4), ("random", 1), ("random", 8))),
    ],
)
def test_fast_numerics_keep_the_books_and_the_sense(
    fast_pipeline: Pipeline, pipeline: Pipeline, drafters: dict[str, Drafter | None], name: str, k: int
) -> None:
    """Fast numerics promise no identical tokens, and which of two near ties wins is the machine's to say; each must be
    a token that the exact target finds likely."""
    prompt = pipeline.tokenizer.encode(PROMPTS[0])
    result = fast_pipeline.generate(prompt, max_new_tokens=16, num_draft_tokens=k, drafter=drafters[name])
    target = pipeline.target
    target.prefill(prompt[:-1])
    logits = target.forward([prompt[-1], *result.token_ids[:-1]]).logits  # (n, vocab)
    behind_best = logits.max(axis=1) - logits[np.arange(len(logits)), result.token_ids]
    assert behind_best.max() < 2.0, pipeline.tokenizer.decode(result.token_ids)
    assert result.numerics == "fast"
    check_identities(result.stats.rounds)


def test_trees_from_a_table_are_verified_by_the_real_target(pipeline: Pipeline) -> None:
    """Where rows can move: fast numerics with keys in 16 bits. Siblings catch what the first choice misses."""
    target = load_ir(_target_xml(pipeline), is_draft=True)
    assert target.capabilities.tree
    drafter = Recycling(target.vocab_size, width=4)
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    context = pipeline.tokenizer.encode(question)
    branched, efficiency = [], []
    for _ in range(2):
        stats, text = Stats(), list(context)
        policy = FixedLength(drafter, 8)
        for _ in speculative(target, policy, text, SamplingParams(), stop=(), budget=TOKENS, stats=stats):
            branched.append(drafter.propose(text, 8).tree is not None)
        assert "Paris" in pipeline.tokenizer.decode(text[len(context) :])
        check_identities(stats.rounds)
        assert stats.block_efficiency is not None
        efficiency.append(stats.block_efficiency)
    assert any(branched)
    assert efficiency[1] > efficiency[0], "the table has seen the text"


@pytest.mark.slow
def test_what_was_in_the_cache_before_does_not_change_the_text(pipeline: Pipeline) -> None:
    """A conversation continued with a warm cache says what a fresh process would say."""
    messages = [{"role": "user", "content": "Name three colours of the rainbow and a fruit for each."}]
    first = pipeline.chat(messages, max_new_tokens=40)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And three more?"}]
    warm = pipeline.chat(messages, max_new_tokens=40)
    assert warm.stats.reused_tokens > 30
    pipeline.target.cache.reset()
    cold = pipeline.chat(messages, max_new_tokens=40)
    assert cold.stats.reused_tokens == 0
    assert warm.token_ids == cold.token_ids


@pytest.mark.parametrize("width", [*(pytest.param(width, marks=pytest.mark.slow) for width in (3, 6, 12)), 17])
def test_forwards_padded_to_the_end_of_a_full_context_give_plain_decodings_tokens(
    pipeline: Pipeline,
    plain: Plainly,
    width: int,
) -> None:
    target, cache = pipeline.target, pipeline.target.cache
    prompt = pipeline.tokenizer.encode(PROMPTS[1])
    expected = plain(PROMPTS[1], "greedy")
    whole, cache.capacity = cache.capacity, len(prompt) + TOKENS - 1  # type: ignore[misc]

    class Wide(FixedLength):
        def width(self, tokens: int, context_length: int) -> int:
            return max(tokens, width)

    try:
        context = list(prompt)
        stats = Stats()
        for _ in speculative(target, Wide(NGram(), 4), context, SamplingParams(), stop=(), budget=TOKENS, stats=stats):
            pass
        assert stats.rounds[-1].width == width
    finally:
        cache.capacity = whole  # type: ignore[misc]
    assert context[len(prompt) :] == expected


def test_a_plain_run_is_not_padded_to_the_width_of_drafted_ones(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = ForwardTimes((2, 8), 64, 512, (0.010, 0.011), (0.010, 0.011), width_switch_s=0.005)
    costs = ForwardCost(times, pinned_width=8)
    monkeypatch.setattr(costs, "begin", lambda: None)
    monkeypatch.setattr(pipeline, "target_s", costs)
    widths = {}
    for k in (0, 1):
        rounds = pipeline.generate("Hello", max_new_tokens=8, num_draft_tokens=k, ignore_eos=True).stats.rounds
        widths[k] = {round_.width for round_ in rounds[1:]}  # the first one reads the prompt
    assert widths == {0: {pipeline.target.capabilities.min_width}, 1: {8}}


def test_a_stream_that_was_overtaken_says_so(pipeline: Pipeline) -> None:
    first = iter(pipeline.stream("Name three colours.", max_new_tokens=20))
    next(first)
    pipeline.generate("What is the capital of France?", max_new_tokens=4)
    with pytest.raises(SettingError, match="another generation has begun"):
        next(first)


def test_a_random_seed_is_picked_and_reported(pipeline: Pipeline) -> None:
    sampling = SamplingParams(temperature=1.0)
    first = pipeline.generate("Tell me a story.", sampling=sampling, max_new_tokens=12)
    second = pipeline.generate("Tell me a story.", sampling=sampling, max_new_tokens=12)
    assert first.seed is not None and first.seed != second.seed
    again = pipeline.generate(
        "Tell me a story.", sampling=SamplingParams(temperature=1.0, seed=first.seed), max_new_tokens=12
    )
    assert again.token_ids == first.token_ids


BENCH_PROMPTS = Path(os.environ.get("EDGESPEC_BENCH_PROMPTS", "no such file"))


@pytest.mark.slow
@pytest.mark.skipif(not BENCH_PROMPTS.is_file(), reason="needs the benchmark prompts (EDGESPEC_BENCH_PROMPTS)")
def test_twenty_benchmark_prompts_at_128_tokens(pipeline: Pipeline, drafters: dict[str, Drafter | None]) -> None:
    import json

    lines = BENCH_PROMPTS.read_text(encoding="utf-8").splitlines()
    for line in lines[:: len(lines) // 20][:20]:
        prompt = json.loads(line)
        options = {"raw": prompt["kind"] == "code", "max_new_tokens": 128}
        for sampling in (SamplingParams(), SamplingParams(temperature=0.8, seed=7)):
            texts = [
                pipeline.generate(
                    prompt["turns"][0], sampling=sampling, drafter=drafters[name], num_draft_tokens=4, **options
                )
                for name in ("none", "ngram", "random", "shipped")
            ]
            assert all(text.token_ids == texts[0].token_ids for text in texts), prompt["id"]
