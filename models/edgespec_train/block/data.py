"""Batches of anchors: some consecutive tokens of a text, the states in front of them, and what followed each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgespec_train.corpus.states import States
from edgespec_train.corpus.texts import TextId


@dataclass(frozen=True)
class Batch:
    """b texts with a anchors each.

    states: ``(b, window + a - 1, layers, d)``; row ``window - 1 + j`` is before anchor j. there: ``(b, r)`` whether a
    row exists. tokens: ``(b, a + k)`` head ids of the anchors and what followed. top_ids, top_probs: ``(b, a + k,
    t)`` the target's choice of each of ``tokens``; probabilities are 0 for those that the head cannot propose.
    known: ``(b, a + k)`` whether that token of the text exists. greedy: ``(b,)`` whether the target wrote it greedily.
    """

    states: torch.Tensor
    there: torch.Tensor
    tokens: torch.Tensor
    top_ids: torch.Tensor
    top_probs: torch.Tensor
    known: torch.Tensor
    greedy: torch.Tensor


class Batches:
    """Of texts with states.

    inverse: ``(target vocabulary,)`` head id of each target id; ``unknown`` where there is none. window, block: of the
    head.
    """

    def __init__(self, texts: States, inverse: NDArray[np.int64], unknown: int, window: int, block: int) -> None:
        self.texts, self.inverse = texts, inverse
        self._unknown, self._window, self._block = unknown, window, block

    def planned(self, seed: int, texts: int, anchors: int, first: int = 0) -> Iterator[Batch]:
        """Batches without end, from number ``first`` on: a function of the seed and their number alone."""
        generator = np.random.default_rng(seed)
        order: list[int] = []
        number = 0
        while True:
            chosen, begins = [], []
            while len(chosen) < texts:
                if not order:
                    order = generator.permutation(len(self.texts.texts)).tolist()
                text = self.texts.texts[order.pop()]
                places = len(self.texts.tokens(text)) - 1 - self.texts.answer(text)
                chosen.append(text)
                begins.append(self.texts.answer(text) + int(generator.random() * max(1, places - anchors // 2)))
            if number >= first:
                yield self.batch(chosen, begins, anchors)
            number += 1

    def whole(self, texts: Sequence[TextId]) -> Iterator[Batch]:
        """All anchors of each text, a text a batch."""
        for text in texts:
            anchors = len(self.texts.tokens(text)) - 1 - self.texts.answer(text)
            if anchors > 0:
                yield self.batch([text], [self.texts.answer(text)], anchors)

    def batch(self, texts: Sequence[TextId], begins: Sequence[int], anchors: int) -> Batch:
        """begins: the first anchor of each text."""
        rows, length = self._window + anchors - 1, anchors + self._block
        parts = []
        for text, begin in zip(texts, begins, strict=True):
            tokens, answer = self.texts.tokens(text), self.texts.answer(text)
            top_ids, top_logprobs = self.texts.top(text)
            place = begin - self._window + np.arange(rows)
            there = (place >= 0) & (place < len(tokens))
            held = self.texts.states(text)
            states = held[np.clip(place, 0, len(tokens) - 1)].astype(np.float32)
            place = begin + np.arange(length)
            known, place = place < len(tokens), np.minimum(place, len(tokens) - 1)
            top = self.inverse[top_ids[place - answer]]
            probs = np.exp(top_logprobs[place - answer].astype(np.float32))
            lacking = top == self._unknown
            ids = self.inverse[tokens[place]]
            parts.append((states, there, ids, np.where(lacking, 0, top), np.where(lacking, 0, probs), known))
        states, there, tokens, top_ids, top_probs, known = (np.stack(arrays) for arrays in zip(*parts, strict=True))
        return Batch(
            *(torch.from_numpy(array) for array in (states, there, tokens, top_ids)),
            torch.from_numpy(top_probs.astype(np.float32)),
            torch.from_numpy(known),
            torch.tensor([self.texts.temperature(text) == 0 for text in texts]),
        )
