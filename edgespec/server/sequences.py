"""Saved prefixes: what a cache held for earlier prompts, so that a prompt which begins like one of them is not read
again.

A model has one cache, and its next request often has another text: a chat after a completion, another file. Before rows
are lost, they are copied here, in blocks. A block is filed under the blocks in front of it, so prompts that begin alike
share their blocks, whoever sent them. A prompt takes the longest path of blocks that it begins with.

The block at the end of a text is not full. It is filed like the others, and a prompt may use the beginning of it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from edgespec.backends.kv_blocks import Block, BlockCopies
from edgespec.pipeline import Pipeline
from edgespec.protocols import common_prefix
from edgespec.server.schema import Kind

_LEAST_ROWS = 16
"""Fewer rows are read again as fast as they are copied."""


class _Node:
    """A saved block behind another one, or the root of a model. kind: of the text; of a root: of the one that its cache
    holds."""

    __slots__ = ("block", "children", "kind", "nbytes", "parent", "tokens")

    def __init__(self, parent: _Node | None, tokens: tuple[int, ...], block: Block, kind: Kind) -> None:
        self.parent, self.tokens, self.block, self.kind = parent, tokens, block, kind
        self.children: dict[tuple[int, ...], _Node] = {}
        self.nbytes = sum(part.nbytes for part in block)


class Sequences:
    """Of all models, within one budget. The models' threads share it.

    A completion never takes the place of a chat's blocks: the completions' oldest are dropped first.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.nbytes = 0
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._roots: dict[Pipeline, _Node] = {}
        self._by_age: dict[Kind, OrderedDict[_Node, None]] = {"completion": OrderedDict(), "chat": OrderedDict()}

    def bring(self, pipeline: Pipeline, prompt: Sequence[int], kind: Kind) -> int:
        """Make the cache of a pipeline hold as much of a prompt as there is. Call it between texts, on the model's
        thread. Returns how many rows came back."""
        cache = pipeline.target.cache
        if not self._budget_bytes or not isinstance(cache, BlockCopies) or not cache.can_copy:
            return 0
        cache.drop_unverified_tree()
        tokens = prompt[:-1]
        held = common_prefix(cache.tokens, tokens)
        with self._lock:
            root = self._roots.setdefault(pipeline, _Node(None, (), [], "chat"))
            if cache.length - held >= _LEAST_ROWS:
                self._save(root, cache, root.kind)
            root.kind = kind
            path, length = self._path(root, tokens, cache.block_rows)
            for node in reversed(path):  # the end is older than what it stands behind
                self._touch(node, kind)
        if length - held < _LEAST_ROWS:
            return 0
        first = held // cache.block_rows  # the block that the cache holds in part comes back whole
        cache.restore(tokens[:length], [node.block for node in path[first:]])
        return length - held

    def forget(self, pipeline: Pipeline) -> None:
        """Its model is unloaded."""
        with self._lock:
            if root := self._roots.pop(pipeline, None):
                for node in list(root.children.values()):
                    self._drop(node)

    def _save(self, root: _Node, cache: BlockCopies, kind: Kind) -> None:
        """File all that a cache holds. Blocks that are here already are not copied."""
        node, rows, path = root, cache.block_rows, []
        for index in range(-(-cache.length // rows)):
            tokens = tuple(cache.tokens[index * rows : (index + 1) * rows])
            if (child := node.children.get(tokens)) is None:
                child = _Node(node, tokens, cache.copy_block(index), kind)
                self._drop_beginnings(node, tokens)
                node.children[tokens] = child
                self.nbytes += child.nbytes
            node = child
            path.append(node)
        for node in reversed(path):
            self._touch(node, kind)
        self._shrink(kind)

    def _path(self, root: _Node, tokens: Sequence[int], rows: int) -> tuple[list[_Node], int]:
        """The saved blocks that a text begins with, and how many of its tokens they hold."""
        node, path, length = root, [], 0
        while (child := node.children.get(tuple(tokens[length : length + rows]))) is not None:
            path.append(child)
            length += len(child.tokens)
            if len(child.tokens) < rows:
                return path, length
            node = child
        rest = tokens[length : length + rows]
        best = max(node.children.values(), key=lambda each: common_prefix(each.tokens, rest), default=None)
        if best is not None and (same := common_prefix(best.tokens, tuple(rest))):
            path.append(best)
            length += same
        return path, length

    def _touch(self, node: _Node, kind: Kind) -> None:
        """Mark as used. What a chat used is a chat's from then on."""
        self._by_age[node.kind].pop(node, None)
        node.kind = "chat" if kind == "chat" else node.kind
        self._by_age[node.kind][node] = None

    def _shrink(self, kind: Kind) -> None:
        """Drop the oldest, down to the budget."""
        for each, ages in self._by_age.items():  # completions first
            while self.nbytes > self._budget_bytes and ages:
                if each == "chat" and kind == "completion":
                    return
                self._drop(next(iter(ages)))

    def _drop_beginnings(self, parent: _Node, tokens: tuple[int, ...]) -> None:
        """A block that is not full is of no more use beside one that begins with it."""
        for each in list(parent.children.values()):
            if len(each.tokens) < len(tokens) and each.tokens == tokens[: len(each.tokens)]:
                self._drop(each)

    def _drop(self, node: _Node) -> None:
        """With all behind it: they mean nothing without it."""
        assert node.parent is not None
        node.parent.children.pop(node.tokens, None)
        going = [node]
        while going:  # no recursion: a long text is a deep path
            each = going.pop()
            going += each.children.values()
            if self._by_age[each.kind].pop(each, self) is not self:
                self.nbytes -= each.nbytes
