"""The ReDrafter's draft: the same text as plain decoding, beams folded into a tree, and nothing without states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgespec.backends.fake import FakeModel, Table, random_table
from edgespec.decode.autoregressive import autoregressive
from edgespec.decode.policy import FixedLength
from edgespec.decode.speculative import speculative
from edgespec.drafters.redrafter import ReDrafter, fold
from edgespec.errors import IncompatiblePair
from edgespec.sampling_params import SamplingParams
from edgespec.stats import Stats
from tests.books import check_identities

VOCAB, LAYERS, STEPS, BEAMS = 12, (2, 5), 4, 3
TABLE = random_table(VOCAB, seed=3, order=1)
"""of the target: what follows a token, so a head that reads the token alone can know it"""
IDS = np.array([7, 0, 3, 11, -1, 4, 9, 2, 5], np.int32)
"""of the head: no 1, 6, 8 and 10"""
PROMPT = [1, 2, 3, 1, 2]
MODES = {
    "greedy": SamplingParams(),
    "penalty": SamplingParams(repetition_penalty=1.3, logit_bias={4: 2.0, 5: -50.0}),
    "sampled": SamplingParams(temperature=0.8, seed=7),
    "truncated": SamplingParams(temperature=1.2, top_k=4, top_p=0.9, min_p=0.02, seed=11),
}
REJECTION = SamplingParams(temperature=0.8, seed=7, verification="rejection")


class Graph:
    """A chain, computed in numpy: the head's logits after a token are the target's, as far as it has ids."""

    def __init__(self, table: Table = TABLE, beams: int = 0) -> None:
        self.table, self.beams = table, beams
        self.inputs = {"states": (1, 8), "token": (1,), "noise": (STEPS, len(IDS))}
        chain = {"logits": (STEPS, len(IDS)), "tokens": (STEPS,)}
        self.outputs = {"beams": (beams, STEPS), "scores": (beams, STEPS)} if beams else chain
        self.runs: list[Mapping[str, NDArray[Any]]] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        assert {name: array.shape for name, array in inputs.items()} == self.inputs
        self.runs.append(inputs)
        return self.searched(inputs) if self.beams else self.drawn(inputs)

    def drawn(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        row, logits, tokens = int(inputs["token"][0]), [], []
        for noise in inputs["noise"]:
            logits.append(self.after(row))
            tokens.append(row := int((logits[-1] + noise).argmax()))
        return {"logits": np.array(logits, np.float32), "tokens": np.array(tokens, np.int32)}

    def searched(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        beams: list[tuple[list[int], list[float]]] = [([], [])]
        for noise in inputs["noise"]:
            found = []
            for tokens, sums in beams:
                logits = self.after(tokens[-1] if tokens else int(inputs["token"][0]))
                logprobs = logits - np.log(np.exp(logits).sum()) + (sums[-1] if sums else 0.0)
                found += [(logprobs[i] + noise[i], [*tokens, i], [*sums, logprobs[i]]) for i in range(len(IDS))]
            beams = [(tokens, sums) for _, tokens, sums in sorted(found, key=lambda f: -f[0])[: self.beams]]
        return {
            "beams": np.array([tokens for tokens, _ in beams], np.int32),
            "scores": np.array([sums for _, sums in beams], np.float32),
        }

    def after(self, row: int) -> NDArray[np.float32]:
        return np.where(IDS < 0, -1e4, self.table((max(int(IDS[row]), 0),))[IDS]).astype(np.float32)


def drafter(graph: Graph | None = None, **options: Any) -> ReDrafter:
    return ReDrafter(graph or Graph(), IDS, LAYERS, vocab_size=VOCAB, **options)


def decode(made: ReDrafter, params: SamplingParams, k: int, target: FakeModel | None = None) -> tuple[list[int], Stats]:
    target = target or FakeModel(TABLE, VOCAB, layers=LAYERS)
    context, stats = list(PROMPT), Stats()
    for _ in speculative(target, FixedLength(made, k), context, params, stop=(), budget=40, stats=stats):
        pass
    check_identities(stats.rounds)
    assert list(target.cache.tokens) == context[:-1]
    return context, stats


def plain(params: SamplingParams) -> list[int]:
    context = list(PROMPT)
    for _ in autoregressive(FakeModel(TABLE, VOCAB), context, params, stop=(), budget=40):
        pass
    return context


def accepted(stats: Stats) -> float:
    return sum(r.accepted for r in stats.rounds) / len(stats.rounds)


@pytest.mark.parametrize("k", [1, 3, STEPS, 9])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("beams", [0, BEAMS, -BEAMS], ids=["chain", "best beam", "tree"])
def test_the_text_is_that_of_plain_decoding(beams: int, mode: str, k: int) -> None:
    made = drafter(Graph(beams=abs(beams)))
    made.alternatives = beams < 0
    text, stats = decode(made, MODES[mode], k)
    assert text == plain(MODES[mode])
    assert sum(r.accepted for r in stats.rounds) > 0


@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_the_graph_gets_the_targets_noise(mode: str) -> None:
    """So a head that knows the target's logits is right wherever it has the token."""
    text, stats = decode(drafter(), MODES[mode], STEPS)
    known = [token in IDS for token in text]
    ended = [len(PROMPT) + sum(r.committed for r in stats.rounds[: n + 1]) for n in range(len(stats.rounds))]
    for r, end in zip(stats.rounds[:-1], ended, strict=False):
        first = end - r.committed
        if all(known[first - 1 : end]):
            assert r.accepted == STEPS
    assert accepted(stats) > 0.8


def test_by_rejection_each_token_has_its_distribution_and_a_run_repeats() -> None:
    made = drafter()
    text, stats = decode(made, REJECTION, STEPS)
    assert decode(made, REJECTION, STEPS)[0] == text
    assert accepted(stats) > 1, "the graph's noise is not that of the draws"
    made.observe(0, PROMPT[:-1], {layer: np.ones((4, 4), np.float32) for layer in LAYERS})
    made._state.begin(PROMPT, SamplingParams())
    draft = made.propose(PROMPT, STEPS)
    assert draft.kind == "sampled" and len(draft.probs) == len(draft.tokens) == STEPS
    assert all(given.of(token) > 0 for given, token in zip(draft.probs, draft.tokens, strict=True))


def test_one_inference_a_round() -> None:
    graph = Graph()
    _, stats = decode(drafter(graph), MODES["greedy"], 3)
    assert len(graph.runs) == sum(r.proposed > 0 for r in stats.rounds) <= len(stats.rounds)


def test_it_reads_the_states_that_gave_the_last_token_and_its_line_for_unknown_tokens() -> None:
    graph = Graph()
    made = drafter(graph)
    assert made.hidden_size == 4 and made.needs.layers == LAYERS and made.longest == STEPS
    hidden = {layer: np.arange(12, dtype=np.float32).reshape(3, 4) + 100 * layer for layer in LAYERS}
    made.observe(0, [1, 2, 3], hidden)
    for last, row in ((3, 2), (8, 4)):
        made.begin([1, 2, 3, last], MODES["greedy"])
        assert len(made.propose([1, 2, 3, last], 2)) == 2
        assert graph.runs[-1]["token"] == [row]
        np.testing.assert_array_equal(graph.runs[-1]["states"][0], [208, 209, 210, 211, 508, 509, 510, 511])


@pytest.mark.parametrize("beams", [0, BEAMS])
def test_without_states_nothing_is_drafted(beams: int) -> None:
    graph = Graph(beams=beams)
    made = drafter(graph)
    made.begin(PROMPT, MODES["greedy"])
    assert made.propose(PROMPT, 3).tokens == () and made.unread_tokens(len(PROMPT)) == 0
    made.alternatives = True
    assert made.propose(PROMPT, 3).tokens == () and not graph.runs


def test_a_prompt_that_the_target_held_is_drafted_from_its_second_round_on() -> None:
    target = FakeModel(TABLE, VOCAB, layers=LAYERS)
    target.prefill(PROMPT[:-1])
    text, stats = decode(drafter(), MODES["greedy"], 3, target)
    assert text == plain(MODES["greedy"])
    assert stats.rounds[0].proposed == 0 and stats.rounds[1].proposed == 3


def test_it_stops_where_it_is_told_and_proposes_only_what_is_allowed() -> None:
    made = drafter()
    made.observe(0, PROMPT[:-1], {layer: np.ones((4, 4), np.float32) for layer in LAYERS})
    made.begin(PROMPT, MODES["greedy"])
    whole = made.propose(PROMPT, STEPS)
    assert made.propose_while(PROMPT, STEPS, lambda scores: len(scores) < 2).tokens == whole.tokens[:2]
    forbidden = whole.tokens[1]
    mask = np.arange(VOCAB) != forbidden
    some = made.propose(PROMPT, STEPS, lambda drafted: mask)
    assert some.tokens[:1] == whole.tokens[:1] and forbidden not in some.tokens
    assert len(some) == 2, "the graph's later logits follow another token"
    assert whole.tokens[0] not in drafter_of(blocked=(whole.tokens[0],)).propose(PROMPT, STEPS).tokens


def drafter_of(**options: Any) -> ReDrafter:
    made = drafter(**options)
    made.observe(0, PROMPT[:-1], {layer: np.ones((4, 4), np.float32) for layer in LAYERS})
    made.begin(PROMPT, MODES["greedy"])
    return made


def test_beams_share_their_prefixes_in_one_tree() -> None:
    graph = Graph(beams=BEAMS)
    made = drafter_of(graph=graph)
    made.alternatives = True
    draft = made.propose(PROMPT, BEAMS * STEPS)
    rows = graph.run(graph.runs[-1])
    beams = IDS[rows["beams"]].tolist()
    paths = {tuple(beam[:end]) for beam in beams for end in range(1, STEPS + 1)}
    texts: list[tuple[int, ...]] = [()]
    for token, parent in zip(draft.tokens, draft.parents, strict=True):
        texts.append((*texts[parent], token))
    assert set(texts[1:]) == paths and len(texts) == len(paths) + 1 < BEAMS * STEPS
    assert made.propose(PROMPT, 3).tokens == draft.tokens[:3], "the likeliest nodes come first"
    made.alternatives = False
    assert made.propose(PROMPT, STEPS).tokens == tuple(beams[0]) and made.propose(PROMPT, STEPS).tree is None


def test_the_likeliest_nodes_are_kept_and_a_beam_ends_before_what_must_not_be_proposed() -> None:
    beams, sums = [[5, 6, 7], [9, 6, 8], [5, 1, 2]], [[-0.1, -0.2, -4.0], [-0.3, -0.4, -0.5], [-0.1, -3.0, -3.1]]
    tree = fold(beams, sums, k=5)
    assert tree.tokens == (5, 6, 9, 6, 8) and tree.parents == (0, 1, 0, 3, 4)
    np.testing.assert_allclose(tree.scores, np.exp([-0.1, -0.1, -0.3, -0.1, -0.1]), rtol=1e-6)
    cut = fold(beams, sums, k=9, without=(6,))
    assert cut.tokens == (5, 9, 1, 2) and cut.parents == (0, 0, 1, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": {"states": (1, 8), "token": (1,)}}, r"got states\[1, 8\], token\[1\] to"),
        ({"inputs": {"states": (1, 8), "token": (1,), "noise": (STEPS, 5)}}, r"noise\[4, 5\]"),
        ({"inputs": {"states": (1, 7), "token": (1,), "noise": (STEPS, len(IDS))}}, r"states\[1, 7\]"),
        ({"outputs": {"logits": (STEPS, len(IDS))}}, r"to logits\[4, 9\]; allowed"),
    ],
)
def test_another_graph_is_refused(change: dict[str, Any], said: str) -> None:
    graph = Graph()
    for name, value in change.items():
        setattr(graph, name, value)
    with pytest.raises(IncompatiblePair, match=said):
        drafter(graph)
