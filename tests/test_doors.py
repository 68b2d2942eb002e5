"""Drafters of kinds that are not shipped, untrained, through the real loop: they find what they need, and stay exact.

A head in the shape of EAGLE-3 (arXiv 2503.01840) needs hidden states of three of the target's layers. An adaptive-token
drafter (SDSAT, arXiv 2403.18647) feeds the target tokens of its own and drafts from what it says to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

import edgespec
from edgespec.backends.exact_widths import ExactWidths
from edgespec.backends.fake import FakeModel, hidden_state, random_table
from edgespec.backends.openvino.runtime import ops, ov
from edgespec.decode.autoregressive import autoregressive
from edgespec.decode.policy import FixedLength, Heuristic
from edgespec.decode.speculative import speculative
from edgespec.drafters.first_match import FirstMatch
from edgespec.drafters.ngram import NGram
from edgespec.errors import BackendError, SettingError
from edgespec.hub.resolve import model_path
from edgespec.pipeline import Pipeline
from edgespec.protocols import Drafter, Model, common_prefix
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from edgespec.types import Allowed, Backend, Draft, Hidden, Needs, Step, Verdict
from tests.books import check_identities
from tests.conftest import load_ir

MODES = {"greedy": SamplingParams(), "sampled": SamplingParams(temperature=0.8, top_p=0.95, seed=7)}
TOKENS = 24


class RandomHead(Drafter):
    """States of three layers of the last token, and random weights: a draft token for each of the next places."""

    name = "head"

    def __init__(self, layers: tuple[int, ...], vocab_size: int) -> None:
        self.needs = Needs(layers)
        self.vocab_size = vocab_size
        self.proposed = 0
        self.states: dict[int, tuple[int, NDArray[np.float32]]] = {}
        """by position: the token, and what three layers think of it, ``(3 d,)``"""

    @property
    def seen(self) -> list[int]:
        return [token for token, _ in self.states.values()]

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        """The target keeps what the two texts share, and sends nothing for it."""
        shared = common_prefix(self.seen, context[:-1])
        self.states = dict(islice(self.states.items(), shared))

    def observe(self, start: int, tokens: Sequence[int], hidden: Hidden) -> None:
        assert set(hidden) >= set(self.needs.layers) and all(len(states) == len(tokens) for states in hidden.values())
        self.states = {position: state for position, state in self.states.items() if position < start}
        for row, token in enumerate(tokens):
            self.states[start + row] = token, np.concatenate([hidden[layer][row] for layer in self.needs.layers])

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        assert all(context[position] == token for position, (token, _) in self.states.items())
        last = len(context) - 2
        if last not in self.states:  # the first forward reads the end of the prompt
            return Draft()
        state = self.states[last][1]
        self.proposed += k
        weights = np.random.default_rng(len(state)).standard_normal((len(state), k), np.float32)
        return Draft(tuple(int(1e4 * abs(x)) % self.vocab_size for x in state @ weights))


class AdaptiveTokens(Drafter):
    """What the target said to its own adaptive tokens, the last time a draft was accepted whole, is the next draft."""

    name = "adaptive"

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = tuple(ids)
        self.needs = Needs(extra=len(ids))
        self.next: tuple[int, ...] = ()
        self.came_back = 0

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        self.next = ()

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        return Draft(self.next[:k], extra=self.ids)

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        said = step.logits[1 + len(draft) :].argmax(axis=1)
        assert len(said) == len(draft.extra)
        self.came_back += len(said)
        self.next = tuple(said.tolist()) if verdict.accepted == len(draft) else ()


def run(target: Model, drafter: Drafter, prompt: Sequence[int], params: SamplingParams, k: int | None) -> list[int]:
    context, stats = list(prompt), Stats()
    policy = Heuristic(drafter) if k is None else FixedLength(drafter, k)
    for _ in speculative(target, policy, context, params, stop=(), budget=TOKENS, stats=stats):
        assert list(target.cache.tokens) == context[:-1]
    check_identities(stats.rounds)
    return context


def plain(target: Model, prompt: Sequence[int], params: SamplingParams) -> list[int]:
    context = list(prompt)
    for _ in autoregressive(target, context, params, stop=(), budget=TOKENS):
        pass
    return context


@pytest.fixture(scope="session")
def smollm(pipeline: Pipeline) -> Path:
    return model_path(pipeline.bundle, pipeline.bundle.manifest.target)


@pytest.fixture(scope="session")
def states_of_smollm(smollm: Path, pipeline: Pipeline) -> Model:
    """With the widths that are exact without states: a search for its own takes longer than the tests."""
    can = pipeline.target.capabilities
    widths = ExactWidths(can.min_width, can.max_width, pipeline.target.width_step)  # type: ignore[attr-defined]
    return load_ir(smollm, layers=(2, 15, 27), widths=widths)


@pytest.fixture(scope="session")
def states_and_widths_of_smollm(smollm: Path) -> Model:
    """With widths that were searched with the states."""
    return load_ir(smollm, layers=(2, 15, 27))


@pytest.mark.slow  # on a tiny target below
def test_a_head_that_needs_states_of_three_layers_stays_exact(states_of_smollm: Model, pipeline: Pipeline) -> None:
    text = pipeline.tokenizer.encode("Once upon a time there was a", raw=True) * 9
    head_stays_exact(states_of_smollm, text, MODES["greedy"], (4, None))


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(4, None), (1,)])
@pytest.mark.parametrize("mode", MODES)
def test_so_it_does_with_widths_of_its_own(
    states_and_widths_of_smollm: Model, pipeline: Pipeline, mode: str, lengths: tuple[int | None, ...]
) -> None:
    text = pipeline.tokenizer.encode("Once upon a time there was a", raw=True) * 9
    head_stays_exact(states_and_widths_of_smollm, text, MODES[mode], lengths)


@pytest.mark.parametrize("mode", MODES)
def test_so_it_does_on_a_tiny_target(tiny_ir: Path, mode: str) -> None:
    text = list(range(3, 11)) * 9
    head_stays_exact(load_ir(tiny_ir, layers=(0, 1, 2)), text, MODES[mode], (1, 4, None))


def head_stays_exact(
    target: Model, prompt: Sequence[int], params: SamplingParams, lengths: Sequence[int | None]
) -> None:
    """On an empty cache, and on one that drafts left."""
    head = RandomHead(target.capabilities.hidden, target.vocab_size)
    target.cache.reset()
    expected = plain(target, prompt, params)
    target.cache.reset()
    for k in lengths:
        drafted = run(target, head, prompt, params, k)
        assert head.seen == drafted[:-1]
        assert drafted == expected
        assert head.proposed > 0
        run(target, head, prompt[:-3], params, k)  # another prompt with the same beginning
    assert plain(target, prompt, params) == expected


def test_the_states_that_a_drafter_sees_are_those_of_the_committed_text() -> None:
    """Whatever was rejected meanwhile; also where the first forward reads the end of the prompt."""
    for leaves in (0, 8):
        target = FakeModel(random_table(24, seed=3), 24, layers=(1, 4, 7), leaves=leaves)
        head = RandomHead((1, 4, 7), 24)
        both = FirstMatch([NGram(), head])
        assert both.needs == head.needs
        for k in (0, 1, 5):
            text = run(target, both, [1, 2, 3, 1, 2], MODES["sampled"], k)
            for position in range(len(text) - 1):
                expected = [hidden_state(layer, tuple(text[: position + 1])) for layer in (1, 4, 7)]
                assert np.array_equal(head.states[position][1], np.concatenate(expected))


def with_adaptive_tokens(xml: Path, out: Path, count: int, vocab_size: int) -> tuple[Path, list[int]]:
    """The model with ``count`` more input tokens whose embeddings are random, and their ids."""
    model = ov.Core().read_model(xml)
    ids = model.input("input_ids").get_node()
    readers = list(ids.output(0).get_target_inputs())
    own = ops.minimum(ids, ops.constant(np.int64(vocab_size - 1)))
    for reader in readers:
        reader.replace_source_output(own.output(0))
    model.validate_nodes_and_infer_types()
    table = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Gather" and _reads(node, own))
    d = table.get_output_partial_shape(0)[-1].get_length()
    after = list(table.output(0).get_target_inputs())
    rows = ops.constant(np.random.default_rng(0).standard_normal((count, d)).astype(np.float32) * 0.1)
    place = ops.maximum(ops.subtract(ids, ops.constant(np.int64(vocab_size))), ops.constant(np.int64(0)))
    adaptive = ops.gather(rows, place, ops.constant(np.int64(0)))
    is_own = ops.unsqueeze(ops.less(ids, ops.constant(np.int64(vocab_size))), ops.constant(np.int64(-1)))
    chosen = ops.select(is_own, table, ops.convert_like(adaptive, table))
    for reader in after:
        reader.replace_source_output(chosen.output(0))
    out.mkdir()
    ov.save_model(model, out / "openvino_model.xml", compress_to_fp16=False)
    return out / "openvino_model.xml", [vocab_size + index for index in range(count)]


def _reads(node: ov.Node, source: ov.Node) -> bool:
    above = node.input_value(1).get_node()
    while above.get_type_name() == "Convert":
        above = above.input_value(0).get_node()
    return above.get_name() == source.get_name()


@pytest.mark.slow
def test_adaptive_tokens_run_behind_the_draft_and_stay_exact(
    smollm: Path, tiny_ir: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    prompt = pipeline.tokenizer.encode("Once upon a time there was a", raw=True)
    for number, xml in enumerate((smollm, tiny_ir)):
        vocab_size = load_ir(xml).vocab_size
        changed, ids = with_adaptive_tokens(xml, tmp_path / str(number), 4, vocab_size)
        target, tokens = load_ir(changed), [token % 300 for token in prompt] if xml is tiny_ir else prompt
        drafter = AdaptiveTokens(ids)
        for mode in MODES:
            expected = plain(load_ir(xml), tokens, MODES[mode])
            for k in (0, 4, None):
                assert run(target, drafter, tokens, MODES[mode], k) == expected, (mode, k)
        assert drafter.came_back > TOKENS


def test_extra_rows_are_not_drafts_and_keep_to_the_room_there_is() -> None:
    table = random_table(24, seed=3)
    for capacity, leaves in ((64, 0), (64, 8), (20, 0)):
        target = FakeModel(table, 24, capacity=capacity, leaves=leaves)
        drafter = AdaptiveTokens([97, 98, 99])
        context, stats = [1, 2, 3, 1, 2], Stats()
        for _ in speculative(
            target, FixedLength(drafter, 2), context, MODES["greedy"], stop=(), budget=30, stats=stats
        ):
            assert list(target.cache.tokens) == context[:-1]
        expected = plain(FakeModel(table, 24, capacity=capacity), [1, 2, 3, 1, 2], MODES["greedy"])
        assert context[: len(expected)] == expected[: len(context)]
        assert {r.extra for r in stats.rounds} >= {3} and stats.rounds[-1].width <= 2
        assert all(r.width == 1 + r.evaluated + r.extra + r.read for r in stats.rounds)
        check_identities(stats.rounds)


def test_a_drafter_whose_needs_the_target_was_not_loaded_for_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(SettingError, match=r"drafter head needs hidden states of layers 2, 9.*allowed: none"):
        pipeline.generate("Hello", drafter=RandomHead((2, 9, 9), 9))


@pytest.mark.parametrize("backend", get_args(Backend))
def test_a_target_returns_states_only_if_they_are_needed_and_writes_the_same_text(
    backend: Backend, tiny_ir: Path
) -> None:
    """They are values that it computes anyway: its tokens do not depend on which of them are outputs."""
    texts = []
    for draft, layers in (("none", ()), ("ngram", ()), ("none", (1,)), ("ngram", (0, 1, 2)), ("auto", (0, 1, 2))):
        pair = edgespec.load(
            tiny_ir.parent,
            draft=draft,
            num_draft_tokens=0 if draft == "none" else 3,
            needs=Needs(layers, extra=2),
            backend=backend,
        )
        assert pair.target.capabilities.hidden == layers and pair.target.capabilities.backend == backend
        texts.append(pair.generate([5, 6, 7, 8], max_new_tokens=12, ignore_eos=True).token_ids)
    assert all(text == texts[0] for text in texts)
    head = RandomHead((0, 1, 2), pair.target.vocab_size)
    assert pair.generate([5, 6, 7, 8], max_new_tokens=12, ignore_eos=True, drafter=head).token_ids == texts[0]
    assert head.proposed > 0
    with pytest.raises(BackendError, match="no such layer; got 3; allowed: 0 to 2"):
        edgespec.load(tiny_ir.parent, draft="none", needs=Needs((3,)), backend=backend)
