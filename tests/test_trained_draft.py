"""The draft that ships for qwen2.5-coder-1.5b, on a text that this model wrote for a prompt of our own.

shipped_head_states.npz holds the text's tokens and the model's hidden states of each row (int4 export, OpenVINO, exact
numerics), in 16 bits: as ``prefill(tokens, observe=...)`` gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgespec import SamplingParams
from edgespec.backends.openvino.runtime import core
from edgespec.backends.openvino.static_graph import OpenVINOStaticGraph
from edgespec.drafters.block import Block
from edgespec.drafters.vocabulary_map import read_id_map
from edgespec.hub import catalog

TARGET, TARGET_IDS = "qwen2.5-coder-1.5b", 151_936
BOUND = 1.4
"""tokens a forward at k = 3; 1.0 is a draft that is never right"""


def tokens_a_forward(changed: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda states: states) -> float:
    """Of the text, replayed: each round drafts 3 tokens, and is told the states of what was accepted."""
    shipped = catalog.trained_drafts()[TARGET]
    entry = shipped.manifest.drafter
    assert entry.model is not None and entry.model.file is not None and entry.id_map is not None
    graph = OpenVINOStaticGraph(core(), shipped.root / entry.model.file)
    ids = read_id_map(shipped.root / entry.id_map, entry.model.vocab_size, TARGET_IDS)
    drafter = Block(graph, ids, entry.needs.layers, vocab_size=TARGET_IDS)
    with np.load(Path(__file__).with_name("shipped_head_states.npz")) as data:
        tokens, begin = data["tokens"].tolist(), int(data["prompt"]) + 1
        states = {layer: changed(data[f"layer{layer}"].astype(np.float32)) for layer in entry.needs.layers}
    drafter.observe(0, tokens[: begin - 1], {layer: rows[: begin - 1] for layer, rows in states.items()})
    drafter.begin(tokens[:begin], SamplingParams())
    end, rounds = begin, 0
    while end < len(tokens):
        draft, start = drafter.propose(tokens[:end], 3).tokens, end - 1
        ahead = tokens[end : end + 3]
        accepted = next((i for i, pair in enumerate(zip(draft, ahead, strict=False)) if pair[0] != pair[1]), len(ahead))
        end, rounds = min(end + accepted + 1, len(tokens)), rounds + 1
        drafter.observe(
            start, tokens[start : end - 1], {layer: rows[start : end - 1] for layer, rows in states.items()}
        )
    return (len(tokens) - begin) / rounds


def test_the_shipped_head_agrees_with_its_target() -> None:
    assert tokens_a_forward() > BOUND


def test_states_of_other_rows_are_worth_nothing() -> None:
    """The test above can fail: with the rows in another order the head falls below its bound."""
    assert tokens_a_forward(lambda states: np.roll(states, 7, axis=0)) < BOUND
