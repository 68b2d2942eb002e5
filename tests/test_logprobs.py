"""Log probabilities of a text: the target's own, and the same bits whatever drafted the tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgespec.backends.fake import FakeModel
from edgespec.decode.logprobs import Logprobs, token_logprobs
from edgespec.decode.overlapped import overlapped
from edgespec.decode.speculative import speculative
from edgespec.drafters.ngram import NGram
from edgespec.drafters.none import NoDrafter
from edgespec.drafters.recycling import Recycling
from edgespec.drafters.small_model import SmallModel
from edgespec.errors import SettingError
from edgespec.pipeline import Pipeline
from edgespec.protocols import Drafter, Model
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.text.token_bytes import TokenBytes
from edgespec.types import TokenLogprobs
from tests.conftest import load_ir
from tests.fake_server import fake_pipeline
from tests.loop_cases import DRAFTERS, MODES, PROMPT, TABLE, VOCAB, close_to, run
from tests.policies import fixed


def scored(target: Model, drafter: Drafter, params: SamplingParams, k: int, prompt: list[int]) -> list[TokenLogprobs]:
    found, context = Logprobs(3), list(prompt)
    limits = {"stop": (), "budget": 40, "stats": Stats()}
    for _ in speculative(target, fixed(drafter, k), context, params, logprobs=found, **limits):  # type: ignore[arg-type]
        pass
    assert [each.token for each in found.queue] == context[len(prompt) :]
    return list(found.queue)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["ngram", "close", "trees", "recycling tree", "adaptive", "head"])
def test_drafts_change_no_bit_of_them(name: str, mode: str) -> None:
    drafter = DRAFTERS[name]()
    found = scored(FakeModel(TABLE, VOCAB, layers=(1,)), drafter, MODES[mode], 3, PROMPT)  # type: ignore[arg-type]
    assert found == scored(FakeModel(TABLE, VOCAB), NoDrafter(), MODES[mode], 0, PROMPT)
    context, _, _ = run(NoDrafter(), MODES[mode], 0)
    for index, each in enumerate(found):
        logits = TABLE(tuple(context[: len(PROMPT) + index])).astype(np.float64)
        expected = logits - np.logaddexp.reduce(logits)
        assert each.logprob == pytest.approx(expected[each.token])
        assert [token for token, _ in each.top] == np.argsort(-expected)[:3].tolist()


def test_the_overlapped_schedule_has_the_same() -> None:
    found, context = Logprobs(3), list(PROMPT)
    target, drafter = FakeModel(TABLE, VOCAB), SmallModel(close_to(5), VOCAB)
    for _ in overlapped(
        target, drafter, context, SamplingParams(), stop=(), budget=40, stats=Stats(clock=target.clock), logprobs=found
    ):
        pass
    assert list(found.queue) == scored(FakeModel(TABLE, VOCAB), NoDrafter(), SamplingParams(), 0, PROMPT)


@pytest.mark.parametrize("drafter", [NGram, lambda: Recycling(512)])
def test_a_real_graph_has_the_same(tiny_ir: Path, drafter: Callable[[], Drafter]) -> None:
    target, prompt = load_ir(tiny_ir), [5, 6, 7, 8, 5, 6]
    for params in (SamplingParams(), SamplingParams(temperature=0.9, seed=3)):
        assert scored(target, drafter(), params, 3, prompt) == scored(target, NoDrafter(), params, 0, prompt)


@pytest.mark.parametrize("top", [0, 1, 5, 6, 9])
def test_the_most_likely_come_first(top: int) -> None:
    logits = np.array([1, 3, 2, 3, -np.inf, 0], np.float32)
    found = token_logprobs(logits, 5, top)
    assert [token for token, _ in found.top] == [1, 3, 2, 0, 5, 4][:top]
    assert np.exp([logprob for _, logprob in token_logprobs(logits, 5, 6).top]).sum() == pytest.approx(1)
    assert [token for token, _ in token_logprobs(np.zeros(99, np.float32), 5, top).top] == list(range(top))


def test_a_text_has_one_for_each_token_and_none_unasked(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    prompt = pipeline.text_tokens("The lighthouse")
    plain = pipeline.generate(prompt, max_new_tokens=20)
    assert plain.logprobs is None
    for stop in ((), plain.text[5:7]):
        found = pipeline.generate(prompt, max_new_tokens=20, stop=stop, logprobs=2)
        assert found.logprobs is not None
        assert [each.token for each in found.logprobs] == found.token_ids == plain.token_ids[: len(found.token_ids)]
        assert {len(each.top) for each in found.logprobs} == {2}
    for wrong in (-1, 401, True, "3"):
        with pytest.raises(SettingError, match="logprobs"):
            pipeline.generate(prompt, logprobs=wrong)


def test_a_format_changes_none_and_forced_tokens_have_theirs(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    text = pipeline.text_tokens("The lighthouse")
    form = {"type": "regex", "regex": "(lighthouse|sea and sand){3,5}"}
    found = pipeline.generate(text, max_new_tokens=24, response_format=form, logprobs=3)
    assert found.stats.forced > 0 and found.logprobs
    assert [each.token for each in found.logprobs] == found.token_ids
    for each in found.logprobs:
        pipeline.target.prefill(text[:-1])
        assert each == token_logprobs(pipeline.target.forward(text[-1:]).logits[0], each.token, 3)
        text.append(each.token)


@pytest.mark.parametrize(
    "text", ["The lighthouse leaned. \n\t", "naïve – Ω 🙂‍↔️ 日本", "<|eos|>x<|user|>", "\x00\x7f\xad"]
)
def test_the_bytes_of_tokens_are_those_of_their_text(tmp_path: Path, text: str) -> None:
    pipeline: Pipeline = fake_pipeline(tmp_path)
    spelling = TokenBytes(pipeline.tokenizer)
    assert b"".join(map(spelling.of, pipeline.text_tokens(text))) == text.encode()
    assert spelling.of(399_999) == b""
