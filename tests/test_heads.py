"""Drafting heads on the real pair: exact with every mode, and at home in chats, formats and streams.

On a tiny target they are so in the default suite: tests/test_head_loading.py. What hidden states of the real one do to
its tokens: tests/test_doors.py.
"""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest

import edgespec
from edgespec import SamplingParams
from edgespec.pipeline import Pipeline
from tests.books import check_identities
from tests.heads import write_head

pytestmark = pytest.mark.slow
MODES = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=0.8, top_p=0.95, seed=1234),
    "penalty": SamplingParams(temperature=1.0, repetition_penalty=1.1, seed=99),
}
PROMPTS = (
    "<|im_start|>user\nCount from 1 to 30, with commas.<|im_end|>\n<|im_start|>assistant\n",
    'def add(a, b):\n    """Return the sum."""\n    return a + b\n\n\ndef sub(a, b):\n',
)
TOKENS = 32
LAYER, WIDTH = 30, 576
"""of SmolLM2 135M"""


@pytest.fixture(scope="module")
def plain(pipeline: Pipeline) -> dict[tuple[str, str], list[int]]:
    """Without hidden states."""
    return {
        (mode, prompt): pipeline.generate(
            prompt, raw=True, sampling=params, max_new_tokens=TOKENS, ignore_eos=True, num_draft_tokens=0
        ).token_ids
        for mode, params in MODES.items()
        for prompt in PROMPTS
    }


@pytest.fixture(scope="module", params=["block", "redrafter"])
def headed(
    pipeline: Pipeline,
    plain: dict[tuple[str, str], list[int]],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Pipeline:
    texts = [pipeline.tokenizer.encode(prompt, raw=True) + tokens for (_, prompt), tokens in plain.items()]
    folder = tmp_path_factory.mktemp("head") / "folder"
    write_head(folder, pipeline.bundle, texts, width=WIDTH, layers=(LAYER,), kind=request.param)
    return edgespec.load(draft=folder)


def test_the_target_returns_states_for_a_loaded_head_and_for_no_other_drafter(
    headed: Pipeline, pipeline: Pipeline
) -> None:
    assert headed.target.capabilities.hidden == (LAYER,) and not pipeline.target.capabilities.hidden
    assert headed.arbiter is not None and headed.arbiter.drafters[-1] == "head"
    assert headed.arbiter.draft_s is not None and headed.arbiter.draft_s.start_s > 0
    assert headed.draft_model is None and headed.devices == {"target": "CPU", "draft": "CPU"}


@pytest.mark.parametrize(
    ("mode", "k"),
    product(MODES, (1, 4, None)),
)
def test_exact_numerics_give_plain_decodings_tokens(
    headed: Pipeline, plain: dict[tuple[str, str], list[int]], mode: str, k: int | None
) -> None:
    assert headed.arbiter is not None
    head = None if k is None else headed.arbiter.model
    for prompt in PROMPTS:
        for _ in range(2):  # the second time, the target holds the prompt
            result = headed.generate(
                prompt, raw=True, sampling=MODES[mode], max_new_tokens=TOKENS, ignore_eos=True, drafter=head,
                num_draft_tokens=k,
            )  # fmt: skip
            assert result.token_ids == plain[mode, prompt]
            check_identities(result.stats.rounds)
            if k is not None:
                assert result.stats.proposed > 0 and set(result.stats.by_drafter) <= {"head"}
                assert mode != "greedy" or result.stats.accepted > 0


def test_by_rejection_a_seed_gives_one_text(headed: Pipeline) -> None:
    params = SamplingParams(temperature=0.8, seed=5, verification="rejection")
    assert headed.arbiter is not None
    texts = [
        headed.generate(
            PROMPTS[0], raw=True, sampling=params, max_new_tokens=TOKENS, ignore_eos=True, num_draft_tokens=4,
            drafter=headed.arbiter.model,
        ).token_ids
        for _ in range(3)
    ]  # fmt: skip
    assert texts == texts[:1] * 3


def test_a_chat_goes_on_where_its_last_turn_ended(headed: Pipeline, pipeline: Pipeline) -> None:
    messages = [{"role": "user", "content": "Name three colours."}]
    for question in ("And three more?", "Which is the darkest?"):
        answer = headed.chat(messages, max_new_tokens=24, num_draft_tokens=4)
        assert answer.token_ids == pipeline.chat(messages, max_new_tokens=24, num_draft_tokens=0).token_ids
        messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": question}]
    last = headed.chat(messages, max_new_tokens=24)
    assert last.stats.reused_tokens > 40
    assert last.token_ids == pipeline.chat(messages, max_new_tokens=24, num_draft_tokens=0).token_ids


@pytest.mark.parametrize("k", [4, None])
def test_stop_strings_and_formats_end_and_bind_a_drafted_text(
    headed: Pipeline, pipeline: Pipeline, k: int | None
) -> None:
    whole = pipeline.generate(PROMPTS[0], raw=True, max_new_tokens=40, num_draft_tokens=0).text
    asked: dict[str, Any] = {"max_new_tokens": 40, "stop": whole[20:24], "raw": True}
    found = headed.generate(PROMPTS[0], num_draft_tokens=k, **asked)
    assert found.stop_string == whole[20:24] and whole[20:24] not in found.text
    assert found.token_ids == pipeline.generate(PROMPTS[0], num_draft_tokens=0, **asked).token_ids
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    asked = {"max_new_tokens": 60, "response_format": form}
    found = headed.generate("Describe a person as JSON.", num_draft_tokens=k, **asked)
    assert found.token_ids == pipeline.generate("Describe a person as JSON.", num_draft_tokens=0, **asked).token_ids
    if found.finish_reason == "stop":
        assert json.loads(found.text).keys() == {"name", "age"}


def test_a_stream_that_is_dropped_leaves_the_next_text_right(
    headed: Pipeline, plain: dict[tuple[str, str], list[int]]
) -> None:
    for pieces in (1, 2, 5):
        for prompt in PROMPTS:
            stream = headed.stream(prompt, raw=True, max_new_tokens=TOKENS, num_draft_tokens=4, ignore_eos=True)
            for _ in zip(range(pieces), stream, strict=False):
                pass
            stream.close()
            result = headed.generate(prompt, raw=True, max_new_tokens=TOKENS, ignore_eos=True)
            assert result.token_ids == plain["greedy", prompt]
