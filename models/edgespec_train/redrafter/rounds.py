"""Rounds to train the head on: every answer token that is written twice over, as the target's state and as a label.

A round is where drafting may begin: the state of a row, the token that it gave, and what the target wrote after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgespec_train.corpus import shards
from edgespec_train.corpus.batches import Batch


@dataclass(frozen=True)
class RoundBatch:
    """n rounds. states: ``(n, layers * d)``. tokens: ``(n, steps)`` the head's ids of what each step reads.
    targets: for each step its labels (see ``Batch``). there: ``(n, steps)`` whether the text goes on so far."""

    states: torch.Tensor
    tokens: torch.Tensor
    targets: list[Batch]
    there: torch.Tensor


class Rounds:
    """The rounds of recorded states (see ``corpus.states``)."""

    def __init__(
        self,
        folder: Path,
        layers: Sequence[int],
        known: Sequence[int],
        inverse: NDArray[np.int64],
        readable: NDArray[np.bool_],
        steps: int,
        held_out: bool,
        dtype: Any = np.int32,
        limit: int | None = None,
    ) -> None:
        self.inverse, self.readable, self.steps = inverse, readable, steps
        columns = [list(known).index(layer) for layer in layers]
        seen: set[bytes] = set()
        states, last, first, left, greedy, text = [], [], [], [], [], []
        tokens, top_ids, top_logprobs = [], [], []
        rows = texts = 0
        for number, path in enumerate(sorted(folder.glob("meta-*.npz"))[:limit]):
            meta = np.load(path)
            held = np.load(path.with_name(path.name.replace("meta", "states")).with_suffix(".npy"), mmap_mode="r")
            begins, answers, ids = meta["begins"], meta["answers"], meta["tokens"].astype(dtype)
            wanted, at = [], 0
            for begin, answer, end in zip(begins, answers, begins[1:]):
                count = int(end - answer)
                prompt = ids[begin:answer]
                content = ids[begin:end].tobytes()
                if shards.is_held_out(prompt, 0.04) == held_out and content not in seen:
                    seen.add(content)
                    # state of row n - 1, token n, label n + 1: n from the prompt's last token on
                    n = np.arange(max(answer - 1, begin + 1), end - 1)
                    wanted.append(n - 1)
                    last.append(ids[n])
                    first.append(rows + (n + 1 - answer))
                    left.append(end - 1 - n)
                    greedy.append(np.full(len(n), meta["temperature"][np.searchsorted(begins, begin)] == 0))
                    text.append(np.full(len(n), texts))
                    tokens.append(ids[answer:end])
                    top_ids.append(meta["top_ids"][at : at + count])
                    top_logprobs.append(meta["top_logprobs"][at : at + count])
                    rows += count
                    texts += 1
                at += count
            if wanted:
                chosen = np.concatenate(wanted)
                part = np.empty((len(chosen), len(columns), held.shape[2]), np.float16)
                for a in range(0, len(chosen), 4096):
                    part[a : a + 4096] = held[chosen[a : a + 4096]][:, columns]
                states.append(part.reshape(len(chosen), -1))
        self.shard_of = np.concatenate([np.full(len(s), i) for i, s in enumerate(states)])
        self.row_of = np.concatenate([np.arange(len(s)) for s in states])
        self.states = states
        self.last, self.first = np.concatenate(last), np.concatenate(first)
        self.left, self.greedy, self.text = np.concatenate(left), np.concatenate(greedy), np.concatenate(text)
        self.tokens, self.top_ids = np.concatenate(tokens), np.concatenate(top_ids)
        self.top_logprobs = np.concatenate(top_logprobs)

    def __len__(self) -> int:
        return len(self.last)

    def states_of(self, which: NDArray[np.intp]) -> NDArray[np.float32]:
        out = np.empty((len(which), self.states[0].shape[1]), np.float32)
        for shard in np.unique(self.shard_of[which]):
            here = np.flatnonzero(self.shard_of[which] == shard)
            out[here] = self.states[shard][self.row_of[which[here]]]
        return out

    def batch(self, which: NDArray[np.intp], sizes: Sequence[int]) -> RoundBatch:
        """sizes: of how many of the rounds each step is trained on, the first ones."""
        read = np.zeros((len(which), self.steps), np.int64)
        read[:, 0] = self.inverse[self.last[which]]
        there = np.arange(self.steps) < self.left[which][:, None]
        targets = []
        for j, size in enumerate(sizes):
            index = (self.first[which[:size]] + j).clip(max=len(self.tokens) - 1)
            ok = there[:size, j]
            labels, best = self.tokens[index], self.top_ids[index]
            if j + 1 < len(sizes):
                read[: len(index), j + 1] = self.inverse[labels]
            probs = np.exp(self.top_logprobs[index].astype(np.float32)) * self.readable[best] * ok[:, None]
            targets.append(
                Batch(
                    tokens=torch.zeros(0),
                    rows=torch.zeros(0),
                    labels=torch.from_numpy(self.inverse[labels]),
                    readable=torch.from_numpy(self.readable[labels] & ok),
                    top_ids=torch.from_numpy(self.inverse[best]),
                    top_probs=torch.from_numpy(probs),
                )
            )
        return RoundBatch(
            torch.from_numpy(self.states_of(which)), torch.from_numpy(read), targets, torch.from_numpy(there)
        )

    def batches(self, seed: int, size: int, first: int = 0) -> Iterator[NDArray[np.intp]]:
        epoch, number = 0, 0
        while True:
            order = np.random.default_rng((seed, epoch)).permutation(len(self))
            planned = len(order) // size or 1
            for i in range(max(0, first - number), planned):
                yield order[i * size : (i + 1) * size]
            number += planned
            epoch += 1
