"""Drafts merged into a tree."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgespec.adaptive.draft_tree import Branch, Merged, merge

BRANCHES = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0.05, 1.0)), min_size=1, max_size=5).map(
        lambda pairs: Branch(
            tuple(t for t, _ in pairs), tuple(min(c for _, c in pairs[: i + 1]) for i in range(len(pairs)))
        )
    ),
    max_size=5,
)


def paths(merged: Merged) -> list[tuple[int, ...]]:
    """The text of each node, from the root."""
    parents = merged.tree if merged.tree is not None else tuple(range(len(merged.tokens)))
    found: list[tuple[int, ...]] = [()]
    for token, parent in zip(merged.tokens, parents, strict=True):
        assert parent < len(found), "a child before its parent"
        found.append((*found[parent], token))
    return found[1:]


@given(BRANCHES, st.floats(0.01, 0.6), st.integers(0, 12))
def test_a_merged_tree_holds_each_path_once_and_the_likeliest_ones(
    branches: list[Branch], price: float, most: int
) -> None:
    merged = merge(branches, lambda nodes: price * nodes, most)
    found = paths(merged)
    offered: dict[tuple[int, ...], float] = {}
    for branch in branches:
        for n, chance in enumerate(branch.chances, 1):
            path = branch.tokens[:n]
            offered[path] = max(offered.get(path, 0.0), chance)
    for path in sorted(offered, key=len):  # as a parent's chance bounds its children's
        offered[path] = min(offered[path], offered.get(path[:-1], 1.0))
    assert len(found) == len(set(found)) <= most
    assert set(found) <= set(offered)
    assert abs(merged.expected - sum(offered[path] for path in found)) < 1e-9
    worthwhile = sorted((c for c in offered.values() if c > price), reverse=True)[:most]
    assert abs(merged.expected - price * len(found) - sum(c - price for c in worthwhile)) < 1e-9


def test_the_likeliest_path_comes_first_and_a_chain_has_no_tree() -> None:
    free = lambda nodes: 0.0  # noqa: E731
    wide = merge([Branch((1,), (0.3,)), Branch((2, 3, 4), (0.6, 0.5, 0.4))], free, 9)
    assert wide.tokens == (2, 3, 4, 1) and wide.tree == (0, 1, 2, 0)
    assert merge([Branch((2, 3), (0.6, 0.5)), Branch((2,), (0.2,))], free, 9) == Merged((2, 3), None, 1.1)
    assert merge([], free, 9) == Merged((), None, 0)
    assert merge([Branch((5,), (0.5,))], lambda nodes: float(nodes), 9).tokens == ()
