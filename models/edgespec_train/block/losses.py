"""What a block is trained on: the target's distribution at each position, with less weight the further it is."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

Loss = Literal["kl", "tv", "kl+tv"]


def distance(logits: torch.Tensor, top_ids: torch.Tensor, top_probs: torch.Tensor, kind: Loss) -> torch.Tensor:
    """``(n,)`` from the head's distribution to the target's, of which the best tokens are known.

    kl: cross-entropy against their probabilities. tv: total variation, which is the share of draws that the target
    rejects (LK losses, arXiv 2602.23881); its gradient vanishes where the two have nothing in common. kl+tv: 0.1 and
    0.9 of them, as DSpark.
    """
    logprobs = functional.log_softmax(logits.float(), -1).gather(1, top_ids)
    total = torch.zeros(len(logits), device=logits.device)
    if "kl" in kind:
        total = total - (top_probs * logprobs).sum(-1) * (0.1 if "tv" in kind else 1.0)
    if "tv" in kind:
        accepted = torch.minimum(logprobs.exp(), top_probs).sum(-1)
        total = total + (1 - accepted) * (0.9 if "kl" in kind else 1.0)
    return total
