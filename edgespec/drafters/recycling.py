"""Token Recycling (Luo et al. 2024, arXiv 2408.08696): the target's other choices are drafts for later rounds.

A table keeps for every token the successors the target thought likeliest when it was last fed that token. Each
verified row fills one line, rejected rows too: their logits are paid for. A draft follows the table from the last
committed token on. The table outlives a generation, so it learns what this target tends to write.

Deviations: the paper's tree is one template of 80 nodes for large GPUs. Here it is as many nodes as asked, likeliest
first, of one narrow template, and a chain where the target verifies chains only; the table keeps no more successors
than a node may have branches. A token that was never fed gets the one that followed it in the prompt. Where a round
fed a token twice, a row that stands is kept over one that was rejected.
"""

from __future__ import annotations

import heapq
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgespec.errors import SettingError
from edgespec.types import Draft, Logits, SamplingParams, Step, Verdict

_NODES = 64
"""of the template: most tokens of a draft"""
_CHANCES = (0.35, 0.09, 0.07, 0.04, 0.03, 0.02, 0.02, 0.02)
"""how often the successor of this rank was the right one: SmolLM2-135M on the prompts of ``edgespec bench speed``"""
_BLOCK = 128
"""logits that ``likeliest`` looks at together"""


class Recycling:
    """Proposes what followed before. Costs no forward; a line of the table is ``4 * width`` bytes.

    vocab_size: number of the target's logits.
    width: successors kept per token, and most branches of a node. 1 drafts chains; more drafts trees, which the
        target must be able to verify (``Capabilities.tree``).

    >>> drafter = Recycling(10)
    >>> step = Step(np.eye(10, dtype=np.float32)[[6, 8]])           # after 5 the target says 6, after 7 it says 8
    >>> drafter.commit([5, 6], Draft((7,)), Verdict(0, (6,), (0,)), step)
    >>> drafter.propose([6, 5], 4).tokens, drafter.propose([6, 7], 4).tokens
    ((6,), (8,))
    """

    name = "recycling"

    def __init__(self, vocab_size: int, *, width: int = 1) -> None:
        if not 1 <= width <= min(len(_CHANCES), vocab_size):
            raise SettingError("recycling width", got=width, allowed=f"1 to {min(len(_CHANCES), vocab_size)}")
        self._successors = np.full((vocab_size, width), -1, np.int32)  # likeliest first; -1: none known
        self._template = static_tree(_CHANCES[:width], _NODES)

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        follows = dict(pairwise(context))  # what stood last behind each token
        tokens, after = np.array(list(follows), np.intp), np.array(list(follows.values()), np.int32)
        empty = self._successors[tokens, 0] < 0
        self._successors[tokens[empty], 0] = after[empty]

    def propose(self, context: Sequence[int], k: int) -> Draft:
        token_at, row_at = [context[-1]], [0]  # of each node of the template; token -1: unknown, as is all below it
        tokens: list[int] = []
        tree: list[int] = []
        for parent, rank in self._template:
            if len(tokens) == k:
                break
            above = token_at[parent]
            token = int(self._successors[above, rank]) if above >= 0 else -1
            if token >= 0:
                tokens.append(token)
                tree.append(row_at[parent])
            token_at.append(token)
            row_at.append(len(tokens))
        chain = tree == list(range(len(tree)))
        return Draft(tuple(tokens), None if chain else tuple(tree))

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        fed = (context[-1 - len(verdict.tokens)], *draft.tokens)
        stands = set(verdict.path)
        row_of = {fed[row]: row for row in sorted(range(len(fed)), key=stands.__contains__)}
        best = likeliest(step.logits, self._successors.shape[1])
        self._successors[list(row_of)] = best[list(row_of.values())]

    def reset(self) -> None:
        self._successors.fill(-1)

    def remember(self, file: Path, target: str) -> None:
        """Go on from the table in ``file``, and write it there when this drafter goes or the process ends.

        target: what the table is about. A file about another target, of another shape, or damaged is ignored and
        later overwritten. It holds pairs of tokens from the texts, no texts.
        """
        stored = _read(file, target, self._successors.shape)
        if stored is not None:
            self._successors[:] = stored
        weakref.finalize(self, _write, self._successors, file, target)


def likeliest(logits: Logits, count: int) -> NDArray[np.intp]:
    """Ids of the largest logits of each row, largest first: ``(rows, vocab)`` to ``(rows, count)``.

    Each of them is in one of the ``count`` blocks with the largest maxima; so after one pass over the row only these
    blocks are looked at. 4 of 49,152: one pass, then 384 maxima and 512 logits to choose from.

    >>> likeliest(np.array([[1, 9, 3, 7]], np.float32), 2).tolist()
    [[1, 3]]
    """
    if count == 1:
        return np.asarray(logits.argmax(axis=1))[:, None]
    rows, vocab = logits.shape
    blocks = vocab // _BLOCK
    ids = np.broadcast_to(np.arange(vocab), logits.shape)
    if blocks > count:
        maxima = logits[:, : blocks * _BLOCK].reshape(rows, blocks, _BLOCK).max(axis=2)
        best = np.argpartition(maxima, -count, axis=1)[:, -count:, None]  # (rows, count, 1)
        inside = (best * _BLOCK + np.arange(_BLOCK)).reshape(rows, -1)
        ids = np.concatenate([inside, ids[:, blocks * _BLOCK :]], axis=1)
    values = np.take_along_axis(logits, ids, axis=1)
    top = np.argpartition(values, -count, axis=1)[:, -count:]
    order = np.argsort(-np.take_along_axis(values, top, axis=1), axis=1)
    return np.take_along_axis(ids, np.take_along_axis(top, order, axis=1), axis=1)


def static_tree(chances: Sequence[float], nodes: int) -> tuple[tuple[int, int], ...]:
    """(parent node, rank among its children) of nodes 1, 2, ...; node 0 is the root. Likeliest nodes first, so any
    beginning is the best tree of its size, if a child of rank r is right with chance ``chances[r]``.

    >>> static_tree([0.5, 0.3], 4)                     # chances 0.5, 0.3, 0.5 * 0.5, 0.5 * 0.3
    ((0, 0), (0, 1), (1, 0), (1, 1))
    """
    found: list[tuple[int, int]] = []
    waiting = [(-chance, 0, rank) for rank, chance in enumerate(chances)]
    while len(found) < nodes:
        negative, parent, rank = heapq.heappop(waiting)
        found.append((parent, rank))
        for below, chance in enumerate(chances):
            heapq.heappush(waiting, (negative * chance, len(found), below))
    return tuple(found)


def _read(file: Path, target: str, shape: tuple[int, ...]) -> NDArray[np.int32] | None:
    """The table in a file, if that is what it is."""
    table = np.full(shape, -1, np.int32)
    try:
        if file.stat().st_size > 2 * table.nbytes + (1 << 16):
            return None
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            tokens, successors = stored["tokens"], stored["successors"]
            if str(stored["target"]) != target or tuple(stored["shape"]) != shape:
                return None
            if successors.min(initial=0) < -1 or successors.max(initial=0) >= shape[0]:
                return None  # it would be fed to the target
            table[tokens] = successors
    except Exception:  # a damaged archive raises many things
        return None
    return table


def _write(table: NDArray[np.int32], file: Path, target: str) -> None:
    """The known lines only. A cache that cannot be written only means that the next process learns anew."""
    tokens = np.flatnonzero(table[:, 0] >= 0)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as out:
                np.savez(out, target=target, shape=table.shape, tokens=tokens, successors=table[tokens])
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
