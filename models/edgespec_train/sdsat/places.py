"""Where placeholders stand in training: behind every token of an answer, or behind Poisson-many at random places.

Both are one batch of groups: a group is the placeholders behind one real token, its anchor (see ``placeholders``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edgespec_train.corpus.texts import TargetTexts, TextId

Placing = Literal["random", "every"]


@dataclass(frozen=True)
class Groups:
    """tokens: ``(b, n)`` target ids. anchors: ``(b, g)``. real: ``(b, g)`` False where a text has fewer groups than
    others. ends: ``(b,)`` lengths of the texts."""

    tokens: torch.Tensor
    anchors: torch.Tensor
    real: torch.Tensor
    ends: torch.Tensor

    def to(self, device: torch.device) -> Groups:
        return Groups(**{name: value.to(device) for name, value in vars(self).items()})

    def told(self, count: int) -> torch.Tensor:
        """``(b, g, count)`` whether the text goes on so far that it tells what each placeholder stands for."""
        rows = self.anchors[:, :, None] + 1 + torch.arange(count, device=self.anchors.device)
        return (rows < self.ends[:, None, None]) & self.real[:, :, None]

    def teachers(self, count: int) -> torch.Tensor:
        """``(b, g, count)`` the real token behind which the target itself chose what each placeholder should guess."""
        rows = self.anchors[:, :, None] + 1 + torch.arange(count, device=self.anchors.device)
        return rows.clamp(max=self.tokens.shape[1] - 1)


def groups_of(texts: TargetTexts, chosen: Sequence[TextId], anchors: Sequence[NDArray[np.integer]]) -> Groups:
    """anchors: of each text, places in it."""
    most = max(1, max(len(places) for places in anchors))
    padded = np.zeros((len(chosen), most), np.int64)
    real = np.zeros((len(chosen), most), bool)
    for line, places in enumerate(anchors):
        padded[line, : len(places)], real[line, : len(places)] = places, True
    return Groups(
        torch.from_numpy(texts.padded(chosen)),
        torch.from_numpy(padded),
        torch.from_numpy(real),
        torch.tensor([texts.length(text) for text in chosen]),
    )


def choose(
    texts: TargetTexts, chosen: Sequence[TextId], placing: Placing, share: float, random: np.random.Generator
) -> list[NDArray[np.integer]]:
    """Anchors in the answers. share: mean share of the answer's tokens that are anchors, if they are random."""
    found: list[NDArray[np.integer]] = []
    for text in chosen:
        possible = answer_places(texts, text)
        if placing == "random":
            many = min(len(possible), max(1, int(random.poisson(share * len(possible)))))
            possible = np.sort(random.choice(possible, many, replace=False)) if len(possible) else possible
        found.append(possible)
    return found


def answer_places(texts: TargetTexts, text: TextId) -> NDArray[np.integer]:
    """The places behind which at least one placeholder can be trained, from the prompt's last token on."""
    return np.arange(len(texts.prompt(text)) - 1, texts.length(text) - 1)
