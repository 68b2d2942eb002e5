"""Token Recycling (Luo et al. 2024, arXiv 2408.08696): the target's other choices are drafts for later rounds.

A successor table keeps for every token the likeliest successors, from the target's last forward over that token. Each
verified row fills one line of the table. Rejected rows do so too, since their logits are computed anyway. A draft
follows the table from the last committed token on. The table outlives a generation, so it learns what this target tends
to write.

There are four deviations from the paper. Its tree is one template of 80 nodes for large GPUs. Here a tree has as many
nodes as asked for, those with the largest products of scores; where the target verifies chains only, it is a chain. The
table keeps no more successors than a node may have branches. A token that the target never read gets the token that
followed it in the prompt. If a round read a token twice, an accepted row is kept over a rejected one.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from heapq import heappop, heappush
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgespec.drafters.recycling_file import read_table, write_table
from edgespec.errors import SettingError
from edgespec.protocols import Drafter
from edgespec.sampling_params import SamplingParams
from edgespec.types import Allowed, Draft, Logits, Step, Verdict

_WIDEST = 8
_FROM_PROMPT = 0.7
"""score of a successor that comes from the prompt and not from the target"""
_ELSEWHERE = 0.25
"""factor of a score if the token before differs from the one in the table"""
_GROUP = 128
"""logits per block in ``likeliest``"""


class Recycling(Drafter):
    """Proposes the successors in its table. Costs no forward. A line of the table takes ``8 * width + 4`` bytes.

    vocab_size: number of the target's logits.
    width: successors kept per token, and most branches of a node. 1 drafts chains. More drafts trees, which the target
        must be able to verify (``Capabilities.tree``).

    A score is the token's share of probability among the ``width + 1`` likeliest when the line was written. It is a
    quarter of that if another token stood before. The successor of two tokens is known better than that of one.

    >>> drafter = Recycling(10)
    >>> step = Step(np.eye(10, dtype=np.float32)[[6, 8]])           # after 5 the target says 6, after 7 it says 8
    >>> drafter.commit([5, 6], Draft((7,)), Verdict(0, (6,), (0,)), step)
    >>> drafter.propose([6, 5], 4).tokens, drafter.propose([6, 7], 4).tokens
    ((6,), (8,))
    """

    name = "recycling"
    uses_history = True

    def __init__(self, vocab_size: int, *, width: int = 1) -> None:
        if not 1 <= width < min(_WIDEST + 1, vocab_size):
            raise SettingError("recycling width", got=width, allowed=f"1 to {min(_WIDEST, vocab_size - 1)}")
        self._successors = np.full((vocab_size, width), -1, np.int32)  # likeliest first; -1: none known
        self._scores = np.zeros((vocab_size, width), np.float32)
        self._before = np.full(vocab_size, -1, np.int32)  # the token before it when the line was written

    def begin(self, context: Sequence[int], params: SamplingParams) -> None:
        places = {token: index for index, token in enumerate(context[:-1])}  # last position of each token
        for token, index in places.items():
            if self._successors[token, 0] < 0:
                self._successors[token, 0] = context[index + 1]
                self._scores[token, 0] = _FROM_PROMPT
                self._before[token] = context[index - 1] if index else -1

    def propose(self, context: Sequence[int], k: int, allowed: Allowed | None = None) -> Draft:
        tokens: list[int] = []
        scores: list[float] = []
        tree: list[int] = []
        waiting: list[tuple[float, int, int, int, float]] = []  # -product of scores, turn, parent row, token, score
        turn, before, above, product = 0, context[-2] if len(context) > 1 else -1, context[-1], 1.0
        while len(tokens) < k:
            worth = 1.0 if self._before[above] == before else _ELSEWHERE
            for token, share in zip(self._successors[above].tolist(), self._scores[above].tolist(), strict=True):
                if token >= 0:
                    heappush(waiting, (-product * worth * share, turn, len(tokens), token, worth * share))
                    turn += 1
            if not waiting:
                break
            negative, _, row, token, score = heappop(waiting)
            product, before, above = -negative, tokens[row - 1] if row else context[-1], token
            tokens.append(token)
            scores.append(score)
            tree.append(row)
        chain = tree == list(range(len(tree)))
        return Draft(tuple(tokens), None if chain else tuple(tree), scores=tuple(scores))

    def commit(self, context: Sequence[int], draft: Draft, verdict: Verdict, step: Step) -> None:
        last = len(context) - 1 - len(verdict.tokens)
        fed = (context[last], *draft.tokens)
        before = (context[last - 1] if last else -1, *(fed[parent] for parent in draft.parents))
        stands = set(verdict.path)
        row_of = {fed[row]: row for row in sorted(range(len(fed)), key=stands.__contains__)}
        lines, rows = list(row_of), list(row_of.values())
        width = self._successors.shape[1]
        best = likeliest(step.logits, width + 1)[rows]
        values = step.logits[np.array(rows)[:, None], best]
        known = np.isfinite(values).all(axis=1)  # an overflow says nothing of what follows
        lines, rows, best, values = np.array(lines)[known], np.array(rows)[known], best[known], values[known]
        shares = np.exp(values - values[:, :1])
        self._successors[lines] = best[:, :width]
        self._scores[lines] = (shares / shares.sum(axis=1, keepdims=True))[:, :width]
        self._before[lines] = [before[row] for row in rows]

    def reset(self) -> None:
        self._successors.fill(-1)

    def remember(self, file: Path, about: str) -> None:
        """Load the table from ``file``. Write it there when this drafter is garbage-collected or the process ends.

        about: what the table is about. A file about something else, or of another shape, is ignored and later
            overwritten. A damaged file is removed. The file holds triples of tokens from the texts: see
            ``drafters.recycling_file``.
        """
        table = self._successors, self._scores, self._before
        read_table(file, about, *table)
        weakref.finalize(self, write_table, file, about, *table)


def likeliest(logits: Logits, count: int) -> NDArray[np.intp]:
    """Ids of the largest logits of each row, largest first: ``(rows, vocab)`` to ``(rows, count)``.

    Each of them is in one of the ``count`` groups with the largest maxima. So one pass over the row finds these groups,
    and only they are searched. For 4 of 49,152 logits: one pass, then 384 maxima and 512 logits to choose from. A group
    is every 384th logit there: maxima of whole stretches of memory take a fifth of the time of maxima within them.

    >>> likeliest(np.array([[1, 9, 3, 7]], np.float32), 2).tolist()
    [[1, 3]]
    """
    if count == 1:
        return np.asarray(logits.argmax(axis=1))[:, None]
    rows, vocab = logits.shape
    groups = vocab // _GROUP
    if groups > count:
        maxima = logits[:, : groups * _GROUP].reshape(rows, _GROUP, groups).max(axis=1)
        best = np.argpartition(maxima, -count, axis=1)[:, -count:, None]  # (rows, count, 1)
        inside = (best + groups * np.arange(_GROUP)).reshape(rows, -1)
        rest = np.broadcast_to(np.arange(groups * _GROUP, vocab), (rows, vocab - groups * _GROUP))
        ids = np.concatenate([inside, rest], axis=1)
    else:
        ids = np.broadcast_to(np.arange(vocab), logits.shape)
    values = np.take_along_axis(logits, ids, axis=1)
    top = np.argpartition(values, -count, axis=1)[:, -count:]
    order = np.argsort(-np.take_along_axis(values, top, axis=1), axis=1)
    return np.take_along_axis(ids, np.take_along_axis(top, order, axis=1), axis=1)
