"""From the target's texts to a draft's batches: which answer rows count, and what the target thought at each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgespec_train.corpus.texts import TargetTexts, TextId


@dataclass(frozen=True)
class Batch:
    """b texts padded to n tokens; r rows that propose an answer token.

    tokens: ``(b, n)`` draft ids. rows: ``(r,)`` index into the flattened ``(b, n)``. labels: ``(r,)`` draft id of the
    token the target chose. readable: ``(r,)`` False where the draft has no id for it.
    top_ids, top_probs: ``(r, TOP)`` draft ids and probabilities, 0 where the draft has no id; ``(r, 0)`` if not all
    shards have them.
    """

    tokens: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor
    readable: torch.Tensor
    top_ids: torch.Tensor
    top_probs: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


class Texts(TargetTexts):
    """Texts as the draft reads them."""

    def __init__(self, paths: Sequence[Path], inverse: NDArray[np.int64], readable: NDArray[np.bool_]) -> None:
        """inverse: the draft id that stands for each target id. readable: which target ids the draft has.

        Raises SettingError for ids that are none of the target's.
        """
        super().__init__(paths)
        self.check_ids(len(inverse))
        self._inverse = inverse
        self._readable = readable

    @classmethod
    def of(cls, texts: TargetTexts, inverse: NDArray[np.int64], readable: NDArray[np.bool_]) -> Texts:
        """Of texts that are read and checked."""
        found = cls.__new__(cls)
        vars(found).update(vars(texts))
        found._inverse, found._readable = inverse, readable
        return found

    def batch(self, texts: Sequence[TextId]) -> Batch:
        tokens = self.padded(texts)
        rows, chosen, top_ids, top_logprobs = [], [], [], []
        for line, text in enumerate(texts):
            whole, answer = self.tokens(text), self.answer(text)
            rows.append(line * tokens.shape[1] + np.arange(answer - 1, len(whole) - 1))
            chosen.append(whole[answer:])
            nothing = np.zeros((len(chosen[-1]), 0))
            ids, logprobs = self.top(text) if self.has_top else (nothing.astype(np.int64), nothing)
            top_ids.append(ids)
            top_logprobs.append(logprobs)
        labels, best = np.concatenate(chosen), np.concatenate(top_ids)
        probs = np.exp(np.concatenate(top_logprobs).astype(np.float32)) * self._readable[best]
        return Batch(
            tokens=torch.from_numpy(self._inverse[tokens]),
            rows=torch.from_numpy(np.concatenate(rows)),
            labels=torch.from_numpy(self._inverse[labels]),
            readable=torch.from_numpy(self._readable[labels]),
            top_ids=torch.from_numpy(self._inverse[best]),
            top_probs=torch.from_numpy(probs),
        )
