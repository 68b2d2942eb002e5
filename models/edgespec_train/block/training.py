"""The training of a block head: batches of anchors, a loss by position, and what rounds accept of held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray

from edgespec_train.block.data import Batch, Batches
from edgespec_train.block.head import BlockHead
from edgespec_train.block.losses import Loss, distance
from edgespec_train.corpus.states import States
from edgespec_train.draft_model import UNKNOWN
from edgespec_train.judging import Judged

ANCHORS = 16
"""in each text of a batch: they share the rows of their windows"""


def head_ids(id_map: NDArray[np.int32], vocab_size: int) -> NDArray[np.int64]:
    """``(vocab_size,)`` the head's id of each target id; behind its own ids is the one of all others."""
    own = id_map[id_map != UNKNOWN]
    ids = np.full(vocab_size, len(own), np.int64)
    ids[own] = np.arange(len(own))
    return ids


class Blocks:
    """A ``loop.Task``. decay: position i weighs exp(-i / decay). positions: of a batch, in all blocks."""

    if_diverged = ""

    def __init__(
        self,
        head: BlockHead,
        states: States,
        held_out: States,
        inverse: NDArray[np.int64],
        *,
        loss: Loss = "kl",
        decay: float = 2.0,
        positions: int = 2048,
        seed: int = 0,
    ) -> None:
        self.module: torch.nn.Module = head
        shape = head.shape
        self._texts = Batches(states, inverse, head.vocabulary, shape.window, shape.block)
        self._held_out = Batches(held_out, inverse, head.vocabulary, shape.window, shape.block)
        self._held_out_texts = held_out.texts
        self._kind: Loss = loss
        self._weights = [math.exp(-place / decay) for place in range(shape.block)]
        self._in_batch = max(1, positions // (ANCHORS * shape.block))
        self._seed = seed

    def batches(self, first: int) -> Iterator[Batch]:
        return self._texts.planned(self._seed, self._in_batch, ANCHORS, first)

    def loss(self, module: torch.nn.Module, batch: Batch, device: torch.device) -> tuple[torch.Tensor, int]:
        """Mean over the positions, weighted. The places are the anchors."""
        batch = _on(device, batch)
        logits = module(batch.states, batch.tokens, batch.there)
        total = torch.zeros((), device=device)
        for place, weight in enumerate(self._weights):
            known, ids, probs = _ahead(batch, place, logits[place].shape[1])
            if not known.any():
                continue
            rows, ids, probs = logits[place][known], ids[known], probs[known]
            total = total + weight * distance(rows, ids, probs, self._kind).mean()
        return total / sum(self._weights), int(_ahead(batch, 0, logits[0].shape[1])[0].sum())

    @torch.no_grad()
    def judge(self) -> Judged:
        """Agreement is with the target's likeliest token, over all held-out texts. The rest is of greedy texts."""
        device = next(self.module.parameters()).device
        right: list[NDArray[np.bool_]] = []
        agreed = total = 0
        for batch in self._held_out.whole(self._held_out_texts):
            batch = _on(device, batch)
            logits = self.module(batch.states, batch.tokens, batch.there)
            hits = []
            for place, rows in enumerate(logits):
                chosen = rows.argmax(-1)
                known, ids, probs = _ahead(batch, place, rows.shape[1])
                if not place:
                    agreed += int(((chosen == ids[..., 0]) & (probs[..., 0] > 0) & known).sum())
                    total += int(known.sum())
                hits.append((chosen == batch.tokens[:, 1 + place : 1 + place + rows.shape[1]]) & known)
            if batch.greedy[0]:
                right.append(torch.stack(hits, -1)[0].cpu().numpy())
        return Judged.of(right, agreed / max(1, total))


def _ahead(batch: Batch, place: int, anchors: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the token that a position drafts, for each anchor: whether it exists, and the target's best with their
    probabilities."""
    here = slice(1 + place, 1 + place + anchors)
    return batch.known[:, here], batch.top_ids[:, here], batch.top_probs[:, here]


def _on(device: torch.device, batch: Batch) -> Batch:
    return Batch(*(getattr(batch, field.name).to(device) for field in fields(batch)))
