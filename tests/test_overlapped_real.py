"""The overlapped schedule on real engines: the synchronous text whatever the delays, and what is left after an end.

By default on tiny pairs, whose drafts are right mostly, at times, and never. On the default pair most of
it is slow.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from time import sleep
from typing import Any

import pytest

import edgespec
from edgespec.decode import overlapped as loop
from edgespec.decode.policy import Plain
from edgespec.drafters.first_match import FirstMatch
from edgespec.drafters.small_model import SmallModel
from edgespec.pipeline import Pipeline
from edgespec.protocols import Model, StepwiseDrafter
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Step, Tree
from tests.conftest import load_ir
from tests.test_parity_real import MODES, PROMPTS, TOKENS


class Delayed:
    """A model whose forwards take longer, at random, and may fail."""

    def __init__(self, model: Model, seed: int) -> None:
        self._model, self._delays = model, random.Random(seed)
        self.failing: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(
        self, tokens: Sequence[int], tree: Tree | None = None, *, num_logits: int | None = None, width: int = 1
    ) -> Step:
        if self.failing is not None:
            raise self.failing
        sleep(self._delays.choice((0.0, 0.0, 0.002, 0.03)))
        return self._model.forward(tokens, tree, num_logits=num_logits, width=width)

    def ready(self) -> bool:
        sleep(self._delays.choice((0.0, 0.0, 0.01)))
        return bool(self._model.ready())


class RunsOn:
    """A tiny target that is said to run for some steps of its draft, at random. It is done before the first one, so
    that no guess would be there in time."""

    def __init__(self, model: Model, seed: int = 0) -> None:
        self._model, self._steps = model, random.Random(seed)
        self._left = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def start(
        self, tokens: Sequence[int], tree: Tree | None = None, *, num_logits: int | None = None, width: int = 1
    ) -> None:
        self._left = self._steps.choice((0, 1, 2, 3, 3, 4))
        self._model.start(tokens, tree, num_logits=num_logits, width=width)

    def ready(self) -> bool:
        self._left -= 1
        return self._left < 0 and bool(self._model.ready())


DRAFTS: dict[str, dict[str, Any]] = {"itself": {}, "near": {"scale": 0.25}, "wrong": {"seed": 1}}
"""of a tiny target: how it is built. Weights that are all smaller by as much often choose the same token."""


@pytest.fixture(scope="module", params=[*DRAFTS, pytest.param("real", marks=[pytest.mark.slow, pytest.mark.real])])
def kind(request: pytest.FixtureRequest) -> str:
    """Of the pair's draft, or "real" for the default pair."""
    return str(request.param)


@pytest.fixture(scope="module")
def pair(kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    if kind == "real":
        real: Pipeline = request.getfixturevalue("pipeline")
        return real
    target: Path = request.getfixturevalue("tiny_ir").parent
    draft = target
    if kind != "itself":
        from tests.tiny_models import build, export_ir

        folder = tmp_path_factory.mktemp(kind)
        draft = export_ir(build("llama", folder / "torch", **DRAFTS[kind]), folder / "ir").parent
    return edgespec.load(target, draft=str(draft), num_draft_tokens=4)


@pytest.fixture(scope="module")
def drafting(pair: Pipeline) -> SmallModel:
    return draft_of(pair)


@pytest.fixture
def overlapped(kind: str, pair: Pipeline, drafting: SmallModel, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """Of a tiny pair without what depends on times and on scores, which are low: how much is guessed is certain."""
    ours = over(pair, drafting)
    if kind != "real":
        monkeypatch.setattr(loop._Pace, "is_worth_a_step", lambda self: True)
        defaults = loop.overlapped.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "least_chance", 0.0)
        ours.target = RunsOn(ours.target)
    return ours


@pytest.fixture(scope="module")
def shipped(pipeline: Pipeline) -> SmallModel:
    return draft_of(pipeline)


@pytest.fixture(scope="module")
def overlapping(pipeline: Pipeline, shipped: SmallModel) -> Pipeline:
    return over(pipeline, shipped)


def draft_of(pipeline: Pipeline) -> SmallModel:
    drafter = pipeline.drafter
    last = drafter.last if isinstance(drafter, FirstMatch) else drafter
    assert isinstance(last, SmallModel)
    return last


def over(pipeline: Pipeline, drafter: StepwiseDrafter) -> Pipeline:
    """The same models under the overlapped schedule."""
    return Pipeline(pipeline.bundle, pipeline.target, drafter, beside=drafter)


@contextmanager
def delayed(drafter: SmallModel, seed: int) -> Iterator[Delayed]:
    model = drafter.model
    drafter.model = slow = Delayed(model, seed)
    try:
        yield slow
    finally:
        drafter.model = model


def both(pipeline: Pipeline, overlapping: Pipeline, call: Callable[[Pipeline], Any]) -> tuple[Any, Any]:
    pipeline.target.cache.reset()
    expected = call(pipeline)
    overlapping.target.cache.reset()
    return call(overlapping), expected


@pytest.mark.parametrize(
    ("mode", "most"),
    [
        *(("greedy", None), ("sampled", None)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("sampled-all", None), *product(MODES, (1, 8)))),
    ],
)
def test_tokens_are_plain_decodings(
    kind: str, pair: Pipeline, overlapped: Pipeline, mode: str, most: int | None
) -> None:
    """Guesses are kept and dropped, before they are verified and by it."""
    each = plain_decodings_tokens(pair, overlapped, mode, most)
    guessed = [one.guessed for one in each if one.guessed is not None]
    kept, stale = sum(one.kept for one in guessed), sum(one.stale for one in guessed)
    rejected = sum(r.evaluated - r.accepted for one in each for r in one.rounds)
    accepted = sum(one.accepted for one in each)
    if kind in ("itself", "near"):
        assert kept > 0 and accepted > 0
    if kind == "near":
        assert stale > 0 and rejected > 0
    if kind == "wrong":
        assert stale > kept


def plain_decodings_tokens(pipeline: Pipeline, overlapping: Pipeline, mode: str, most: int | None) -> list[Stats]:
    found = []
    for prompt in PROMPTS:
        options: dict[str, Any] = {"sampling": MODES[mode], "max_new_tokens": TOKENS, "ignore_eos": True}
        ids = pipeline.tokenizer.encode(prompt)
        plain = pipeline.generate(ids, policy=Plain(), **options)
        ours = overlapping.generate(ids, num_draft_tokens=most, **options)
        assert ours.token_ids == plain.token_ids
        assert ours.stats.guessed is not None and ours.stats.guessed.kept >= ours.stats.accepted
        found.append(ours.stats)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_so_they_are_with_a_draft_that_is_always_right_and_one_that_is_always_wrong(
    pipeline: Pipeline, random_draft_ir: Any, mode: str
) -> None:
    from edgespec.hub.resolve import model_path

    itself = model_path(pipeline.bundle, pipeline.bundle.manifest.target)
    for xml in (itself, random_draft_ir):
        drafter = SmallModel(load_ir(xml, is_draft=True), pipeline.target.vocab_size)
        plain_decodings_tokens(pipeline, over(pipeline, drafter), mode, None)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_random_delays_change_no_token(pair: Pipeline, overlapped: Pipeline, drafting: SmallModel, seed: int) -> None:
    mode = list(MODES.values())[seed % len(MODES)]
    options: dict[str, Any] = {"sampling": mode, "max_new_tokens": TOKENS, "ignore_eos": True}
    ids = pair.tokenizer.encode(PROMPTS[seed % 2])
    expected = pair.generate(ids, policy=Plain(), **options).token_ids
    target = overlapped.target
    with delayed(drafting, seed):
        overlapped.target = Delayed(target, seed + 100)
        try:
            assert overlapped.generate(ids, num_draft_tokens=1 + seed % 6, **options).token_ids == expected
        finally:
            overlapped.target = target


def test_stop_strings_formats_and_turns_of_a_chat(pipeline: Pipeline, overlapping: Pipeline) -> None:
    turns: list[dict[str, str]] = []
    for content in ("Name three colours.", "And three animals."):
        turns.append({"role": "user", "content": content})
        ours, theirs = (pair.chat(turns, max_new_tokens=20) for pair in (overlapping, pipeline))
        assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
        turns.append({"role": "assistant", "content": theirs.text})
    again = overlapping.chat(turns[:-1], max_new_tokens=4)
    assert again.stats.reused_tokens > len(overlapping.tokenizer.encode(turns[0]["content"])), "rows were not reused"
    response_format = {"type": "regex", "regex": r"[0-9]{2} (cats|dogs) and [0-9] birds"}
    inside = turns[-1]["content"][8:12]
    calls: tuple[Callable[[Pipeline], Any], ...] = (
        lambda pair: pair.chat(turns[:-1], max_new_tokens=20, stop=[inside]),
        lambda pair: pair.generate(PROMPTS[0], raw=True, response_format=response_format),
    )
    for call in calls:
        ours, theirs = both(pipeline, overlapping, call)
        assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason) == (theirs.text, "stop")


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), pytest.param(RuntimeError("the engine is gone"), marks=pytest.mark.slow)]
)
def test_whatever_ends_a_text_the_next_one_is_right(
    pair: Pipeline, overlapped: Pipeline, drafting: SmallModel, error: BaseException
) -> None:
    """A reader that stops, an error of the draft, and Ctrl-C, each while the target runs."""
    ids = pair.tokenizer.encode(PROMPTS[1])
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "ignore_eos": True}
    expected = pair.generate(ids, policy=Plain(), **options).token_ids
    for read in (1, 3):
        stream = overlapped.stream(ids, **options)
        for _ in range(read):
            next(stream)
        stream.close()
        assert overlapped.generate(ids, **options).token_ids == expected
        with delayed(drafting, seed=read) as draft:
            stream = overlapped.stream(ids, **options)
            for _ in range(read):
                next(stream)
            draft.failing = error
            with pytest.raises(type(error)):
                list(stream)
        assert overlapped.generate(ids, **options).token_ids == expected
        assert pair.generate(ids, **options).token_ids == expected, "nor is another schedule's"


@pytest.mark.slow
def test_a_draft_that_shares_no_context_length_ends_its_guesses_and_not_the_text(
    pipeline: Pipeline, overlapping: Pipeline, shipped: SmallModel
) -> None:
    cache = shipped.model.cache
    ids = pipeline.tokenizer.encode(PROMPTS[0])
    expected = pipeline.generate(ids, policy=Plain(), max_new_tokens=TOKENS, ignore_eos=True).token_ids
    capacity = cache.capacity
    cache.capacity = len(ids) + 6  # type: ignore[misc]
    try:
        result = overlapping.generate(ids, max_new_tokens=TOKENS, ignore_eos=True, sampling=SamplingParams())
    finally:
        cache.capacity = capacity  # type: ignore[misc]
    assert result.token_ids == expected
