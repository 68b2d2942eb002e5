"""Where the hidden states of each layer are in a decoder's graph, whatever the engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from edgespec.errors import BackendError

State = TypeVar("State")


class NoSuchLayer(BackendError):
    """A graph in which the hidden states of a layer are not to be found. Its files are whole."""


def chosen(states: Sequence[State], layers: Sequence[int]) -> dict[int, State]:
    """The states of some layers, of those of all. Raises NoSuchLayer."""
    for layer in layers:
        if not 0 <= layer < len(states):
            raise NoSuchLayer("no such layer", got=layer, allowed=f"0 to {len(states) - 1}")
    return {layer: states[layer] for layer in layers}


def require_width(widths: Mapping[int, object], expected: object) -> None:
    """What was found is the states if it is as wide as what the output head reads. Raises NoSuchLayer.

    widths: columns of what was found, by layer.
    """
    for layer, width in widths.items():
        if width != expected:
            raise NoSuchLayer(f"the hidden states of layer {layer} were not found in this model's graph")


def states_before_attention(sources: Sequence[Sequence[int]], attentions: Collection[int], last: int) -> list[int]:
    """What each decoder layer begins from: of the nodes that every path from the tokens to ``last`` passes, the last
    one before the layer's attention. Behind it the path forks, into the layer and around it.

    sources: by node, in the order they run in, the nodes that carry the tokens to it. attentions: one node a layer.
    last: what the output head reads.

    An embedding, and two layers of attention and a sum; only the first has a norm. The last node reads the second sum.

    >>> states_before_attention([[], [0], [1], [0, 2], [3], [3, 4], [5]], {2, 4}, 6)
    [0, 3]
    """
    leads = [False] * len(sources)  # to ``last``
    leads[last] = True
    reach = list(range(len(sources)))  # of each node, the farthest one that reads it on the way to ``last``
    for index in reversed(range(len(sources))):
        if leads[index]:
            for source in sources[index]:
                leads[source], reach[source] = True, max(reach[source], index)
    found, passed, farthest = [], 0, 0
    for index in (index for index in range(len(sources)) if leads[index]):
        if index in attentions:
            found.append(passed)
        if farthest <= index:  # nothing leads around it
            passed = index
        farthest = max(farthest, reach[index])
    return found
