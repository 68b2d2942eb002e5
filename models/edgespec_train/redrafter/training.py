"""The look-ahead of a recurrent head: from each place the head predicts the next tokens, as in a round.

It reads the target's own tokens on the way. That is local distillation: what it is judged by at each step is the
target's distribution behind just these tokens. The paper samples them again from each place of other text.

Not all rounds get so far as to need the later steps. So each step is trained on a share of the places that the step
before it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgespec_train.corpus.batches import Batch
from edgespec_train.corpus.states import NONE, States
from edgespec_train.corpus.texts import TextId
from edgespec_train.draft_model import invert
from edgespec_train.heads import right_ahead
from edgespec_train.judging import Judged
from edgespec_train.losses import Loss, loss_of
from edgespec_train.redrafter.head import Head

_JUDGED_AT_ONCE = 4


@dataclass(frozen=True)
class Steps:
    """p places, in a random order. states: ``(p, layers * d)``. reads: ``(p, k)`` the head's ids of what each step
    reads. targets: what each step is to predict, at the first places; the rest is not trained on."""

    states: torch.Tensor
    reads: torch.Tensor
    targets: list[Batch]

    @property
    def counts(self) -> list[int]:
        return [len(step.labels) for step in self.targets]


class LookAhead:
    """A ``loop.Task``. id_map: see ``heads.Ground``. share: of the places of a step that the next one is trained on."""

    if_diverged = ""

    def __init__(
        self,
        head: Head,
        states: States,
        held_out: States,
        id_map: NDArray[np.int32],
        vocab_size: int,
        *,
        loss: Loss = "kd",
        share: float = 0.6,
        tokens_per_batch: int = 2048,
        seed: int = 0,
    ) -> None:
        self.module: torch.nn.Module = head
        self._steps = head.shape.lookahead
        self._states, self._held_out = states, held_out
        self._inverse = invert(id_map, vocab_size)
        self._readable = np.isin(np.arange(vocab_size), id_map)
        self._kind, self._share = loss, share
        self._tokens_per_batch, self._seed = tokens_per_batch, seed

    def batches(self, first: int) -> Iterator[Steps]:
        planned = self._states.batches(self._seed, self._tokens_per_batch, first)
        for number, texts in enumerate(planned, first):
            yield self.steps(self._states, texts, np.random.default_rng((self._seed, number)))

    def steps(self, states: States, texts: Sequence[TextId], random: np.random.Generator | None = None) -> Steps:
        """random: to choose the places of later steps by; None: all places, in order."""
        k = self._steps
        places = states.places(texts, k)
        order = np.arange(len(places.tokens)) if random is None else random.permutation(len(places.tokens))
        ahead = places.ahead[order]
        reads = self._inverse[np.concatenate([places.tokens[order, None], ahead[:, :-1].clip(min=0)], 1)]
        targets, count = [], float(len(order))
        for step in range(k):
            some = order[: max(1, int(count))]
            labels, ids = places.ahead[some, step], places.top_ids[some, step]
            there = labels != NONE
            probs = np.exp(places.top_logprobs[some, step]) * (self._readable[ids] & there[:, None])
            targets.append(
                Batch(
                    tokens=torch.zeros(0, dtype=torch.int64),
                    rows=torch.zeros(0, dtype=torch.int64),
                    labels=torch.from_numpy(self._inverse[labels]),
                    readable=torch.from_numpy(self._readable[labels] & there),
                    top_ids=torch.from_numpy(self._inverse[ids]),
                    top_probs=torch.from_numpy(probs.astype(np.float32)),
                )
            )
            count *= 1.0 if random is None else self._share
        flat = places.states[order].reshape(len(order), -1)
        return Steps(torch.from_numpy(flat), torch.from_numpy(reads), targets)

    def loss(self, module: torch.nn.Module, batch: Steps, device: torch.device) -> tuple[torch.Tensor, int]:
        logits = module(batch.states.to(device), batch.reads.to(device), batch.counts)
        total = logits[0].new_zeros((), dtype=torch.float32)
        for row, target in zip(logits, batch.targets, strict=True):
            loss = loss_of(row.float(), target.to(device), self._kind)
            total = total + loss * (len(row) / len(batch.states))
        return total, len(batch.states)

    @torch.no_grad()
    def judge(self) -> Judged:
        """Agreement is with the target's likeliest token, over all held-out texts. The rest is of greedy texts."""
        device = next(self.module.parameters()).device
        right: list[NDArray[np.bool_]] = []
        agreed = total = 0
        for begin in range(0, len(self._held_out.texts), _JUDGED_AT_ONCE):
            texts = self._held_out.texts[begin : begin + _JUDGED_AT_ONCE]
            batch = self.steps(self._held_out, texts)
            logits = self.module(batch.states.to(device), batch.reads.to(device), batch.counts)
            best = [step.argmax(-1).cpu() for step in logits]
            first = batch.targets[0]
            agreed += int(((best[0] == first.top_ids[:, 0]) & (first.top_probs[:, 0] > 0)).sum())
            total += len(best[0])
            hits = torch.stack(
                [(b == t.labels) & t.readable for b, t in zip(best, batch.targets, strict=True)], 1
            ).numpy()
            counts = [self._held_out.length(text) - self._held_out.answer(text) - 1 for text in texts]
            parts = right_ahead(counts, hits)
            right += [part for part, text in zip(parts, texts, strict=True) if not self._held_out.temperature(text)]
        return Judged.of(right, agreed / max(1, total))
