"""Several drafts as one tree: what they share is drafted once, and only nodes worth a row stay.

A node's chance is that of its whole path, so no node is likelier than its parent and the n likeliest nodes are always
a tree (the greedy choice of Sequoia, arXiv 2402.12374, and of EAGLE-2, arXiv 2406.16858). How many to take is a
question of costs: rows are added while what they promise is worth what they cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgespec.types import Tree


@dataclass(frozen=True)
class Branch:
    """A chain of tokens from the root. chances: for each, that it and all before it are accepted; never rising."""

    tokens: tuple[int, ...]
    chances: tuple[float, ...]


@dataclass(frozen=True)
class Merged:
    """tokens: parents before children, the likeliest path first. tree: None for a chain. expected: accepted tokens."""

    tokens: tuple[int, ...]
    tree: Tree | None
    expected: float


def merge(branches: Sequence[Branch], cost: Callable[[int], float], most: int) -> Merged:
    """The tree of at most ``most`` nodes with the best ``expected - cost(nodes)``.

    cost: of verifying that many drafted tokens, in tokens; a token drafted by two branches keeps the better chance.

    >>> a, b = Branch((4, 5, 6), (0.8, 0.6, 0.1)), Branch((4, 7), (0.7, 0.3))
    >>> merge([a, b], cost=lambda nodes: 0.2 * nodes, most=9)
    Merged(tokens=(4, 5, 7), tree=(0, 1, 1), expected=1.7)
    >>> merge([a, b], cost=lambda nodes: 0.5 * nodes, most=9)
    Merged(tokens=(4, 5), tree=None, expected=1.4)
    """
    if len(branches) == 1:
        return _cut(branches[0], cost, most)
    children: list[dict[int, int]] = [{}]  # node -> token -> node; node 0 is the root
    chances = [1.0]
    tokens = [-1]
    for branch in branches:
        node = 0
        for token, chance in zip(branch.tokens, branch.chances, strict=True):
            if token not in children[node]:
                children[node][token] = len(tokens)
                children.append({})
                chances.append(0.0)
                tokens.append(token)
            parent, node = node, children[node][token]
            chances[node] = max(chances[node], min(chance, chances[parent]))
    likeliest = sorted(range(1, len(tokens)), key=lambda node: (-chances[node], node))[:most]
    best, length, expected = -cost(0), 0, 0.0
    for n, node in enumerate(likeliest, 1):
        expected += chances[node]
        if expected - cost(n) > best:
            best, length = expected - cost(n), n
    return _ordered(children, tokens, chances, set(likeliest[:length]))


def _cut(chain: Branch, cost: Callable[[int], float], most: int) -> Merged:
    """``merge`` of a single chain, whose chances never rise: one of its beginnings."""
    assert len(chain.tokens) == len(chain.chances)
    best, length, expected, promised = -cost(0), 0, 0.0, 0.0
    for n, chance in enumerate(chain.chances[:most], 1):
        expected += chance
        if expected - cost(n) > best:
            best, length, promised = expected - cost(n), n, expected
    return Merged(chain.tokens[:length], None, promised)


def _ordered(children: list[dict[int, int]], tokens: list[int], chances: list[float], kept: set[int]) -> Merged:
    """Depth first, likeliest child first: the path most likely to be accepted lies in a row and nothing has to move."""
    order: list[int] = []
    rows: dict[int, int] = {0: 0}
    parents: list[int] = []
    waiting = [(0, child) for child in children[0].values() if child in kept]
    waiting.sort(key=lambda pair: chances[pair[1]])
    while waiting:
        parent, node = waiting.pop()
        rows[node] = len(order) + 1
        order.append(node)
        parents.append(rows[parent])
        below = [(node, child) for child in children[node].values() if child in kept]
        waiting += sorted(below, key=lambda pair: chances[pair[1]])
    chain = parents == list(range(len(order)))
    return Merged(
        tuple(tokens[node] for node in order), None if chain else tuple(parents), sum(chances[node] for node in order)
    )
